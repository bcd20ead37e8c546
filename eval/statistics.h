// Intervals of what is measured on few units (windows of text, texts with hidden numbers). All are
// of 95 %.
#pragma once

#include <functional>
#include <vector>

namespace oscarkv {

struct Interval {
  double low, high;
};

// Of a share.
Interval WilsonInterval(int right, int n);

// The jackknife: `statistic(left_out)` is the figure computed without that unit, left_out = -1: of
// all. Student's t with n - 1 degrees of freedom. Of a mean this is the usual interval; of ratios
// and of shares over units of several prompts it takes the units as what was drawn. n < 2: the
// figure and no width known, +-Inf.
Interval JackknifeInterval(int n, const std::function<double(int left_out)>& statistic);

// The percentile bootstrap, for figures that are no means (medians): `statistic(units)` is the
// figure of the units named, which are drawn anew from 0..n-1 with replacement, 2000 times, by a
// generator with a fixed seed. n < 2: as above.
Interval BootstrapInterval(int n,
                           const std::function<double(const std::vector<int>& units)>& statistic);

// The 97.5 % quantile of Student's distribution; `degrees` >= 1.
double StudentQuantile(int degrees);

}  // namespace oscarkv
