// Fitting transforms to covariances: orthogonal rotations as OSCAR does, and the transforms of
// profile `shaped`. All in float64, with Eigen; the same input gives the same bytes on every
// machine that runs this binary. Needed by calibration only: a target of its own.
//
// Matrices are row-major [d, d]; d is a power of two.
#pragma once

#include <vector>

#include "absl/status/statusor.h"

namespace oscarkv {

// x^T x summed into s: x is [rows, d] row-major; s [d, d], of which only the lower triangle (row >=
// column) is kept. `weights`: one per row, or null.
void AddSecondMoment(const double* x, const double* weights, int rows, int d, double* s);
// The full symmetric matrix of such a sum times `factor`.
std::vector<double> Symmetric(const std::vector<double>& lower, int d, double factor);

struct Spectrum {
  std::vector<double> eigenvalues;  // ascending
  double condition = 0;             // largest over smallest, Inf when that is not positive
  int rank = 0;                     // eigenvalues above 1e-10 of the largest
  double top_share = 0;             // share of the trace in the largest tenth of the eigenvalues
};
absl::StatusOr<Spectrum> SpectrumOf(const std::vector<double>& s, int d);

struct OscarFit {
  // M = R H P for row vectors: eigenvectors of S in ascending order (columns of R), Hadamard,
  // bit reversal. Signs: the entry of largest magnitude of each eigenvector is positive.
  std::vector<double> rotation;
  Spectrum spectrum;
};
// kInvalidArgument: S is not finite, or zero.
absl::StatusOr<OscarFit> FitOscar(const std::vector<double>& s, int d);

struct ShapedFit {
  std::vector<double> transform;  // A, for column vectors: y = A (x - mean)
  std::vector<double> inverse;    // of A
  // W = A^-T S_q A^-1, scaled to trace d: the damage of an error n of y is n^T W n.
  std::vector<double> metric;
  Spectrum keys, queries;    // of the two covariances, before the ridge
  double condition = 0;      // of A
  double inverse_error = 0;  // max |A A^-1 - I|
};
// A_t between whitening (t = 0) and the geometric mean (t = 1/2), scaled so that tr(A S_k A^T) = d.
// s_k: covariance of the centred rows; s_q: second moment of what multiplies them. Both get a ridge
// of 1e-4 of their mean eigenvalue, so that a rank-deficient covariance has a fit (its spectrum
// says what it was). kInvalidArgument: not finite, or zero.
absl::StatusOr<ShapedFit> FitShaped(const std::vector<double>& s_k, const std::vector<double>& s_q,
                                    int d, double t);

}  // namespace oscarkv
