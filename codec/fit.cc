// A_t = H U^T M_t^(1/2) with M_t = S_k^(-1/2) (S_k^(1/2) S_q S_k^(1/2))^t S_k^(-1/2): quantisation
// to the nearest level makes white noise and wants the geometric mean of S_k^-1 and S_q (t = 1/2);
// noise shaped to the metric wants whitened keys (t = 0); with two bits the best lies between. U,
// the eigenvectors of M^(1/2) S_k M^(1/2), and the Hadamard matrix H spread the variance evenly
// over the coordinates of a row.
#include "codec/fit.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXd;
using Solver = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>;

constexpr double kRidge = 1e-4;       // of the mean eigenvalue
constexpr double kRankFloor = 1e-10;  // of the largest eigenvalue

// Products are cut to fit the caches, and so their sums' order depends on the machine unless it is
// told which caches to assume.
void FixBlocking() {
  static std::once_flag once;
  std::call_once(once, [] { Eigen::setCpuCacheSizes(32 << 10, 512 << 10, 8 << 20); });
}

Eigen::Map<const Matrix> View(const std::vector<double>& m, int d) {
  return {m.data(), d, d};
}
std::vector<double> Values(const Matrix& m) {
  return {m.data(), m.data() + m.size()};
}

absl::Status CheckCovariance(const std::vector<double>& s, int d, const char* name) {
  if (s.size() != size_t{1} * d * d) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has ", s.size(), " elements, expected ", d, " x ", d));
  }
  FixBlocking();
  double trace = 0;
  for (const double v : s) {
    if (!std::isfinite(v)) return absl::InvalidArgumentError(absl::StrCat(name, " is not finite"));
  }
  for (int i = 0; i < d; ++i) trace += s[size_t{1} * i * d + i];
  if (!(trace > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has trace ", trace, ": the activations are all zero"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Solver> Decompose(const Matrix& s) {
  Solver solver(Eigen::MatrixXd((s + s.transpose()) / 2));
  if (solver.info() != Eigen::Success) {
    return absl::InternalError("the eigenvalue decomposition did not converge");
  }
  return solver;
}

Spectrum Describe(const Vector& w) {
  const int d = static_cast<int>(w.size());
  Spectrum s;
  s.eigenvalues.assign(w.data(), w.data() + d);
  const double largest = w[d - 1], smallest = w[0];
  s.condition = smallest > 0 ? largest / smallest : std::numeric_limits<double>::infinity();
  const int top = std::max(1, d / 10);
  double total = 0, share = 0;
  for (int i = 0; i < d; ++i) {
    s.rank += w[i] > kRankFloor * largest;
    total += std::max(0.0, w[i]);
    share += i >= d - top ? std::max(0.0, w[i]) : 0.0;
  }
  s.top_share = share / total;
  return s;
}

// S^p by its eigenvalues, none below `floor` of the largest.
absl::StatusOr<Matrix> Power(const Matrix& s, double p, double floor = 1e-9) {
  ASSIGN_OR_RETURN(const Solver solver, Decompose(s));
  const Vector& w = solver.eigenvalues();
  const double least = floor * w.maxCoeff();
  const Vector powers = w.unaryExpr([=](double v) { return std::pow(std::max(v, least), p); });
  return Matrix(solver.eigenvectors() * powers.asDiagonal() * solver.eigenvectors().transpose());
}

Matrix Hadamard(int d) {
  Matrix h(d, d);
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) {
      h(i, j) = __builtin_popcount(static_cast<unsigned>(i & j)) % 2 == 0 ? scale : -scale;
    }
  }
  return h;
}

// Eigenvectors are defined up to their sign: fix it, so that another solver gives the same matrix.
Eigen::MatrixXd WithFixedSigns(Eigen::MatrixXd vectors) {
  for (Eigen::Index c = 0; c < vectors.cols(); ++c) {
    Eigen::Index at = 0;
    vectors.col(c).cwiseAbs().maxCoeff(&at);
    if (vectors(at, c) < 0) vectors.col(c) *= -1;
  }
  return vectors;
}

int BitReversed(int i, int d) {
  int out = 0;
  for (int bit = 1; bit < d; bit <<= 1, i >>= 1) out = out << 1 | (i & 1);
  return out;
}

Matrix WithRidge(const std::vector<double>& s, int d) {
  Matrix m = (View(s, d) + View(s, d).transpose()) / 2;
  m.diagonal().array() += kRidge * m.trace() / d;
  return m;
}

}  // namespace

void AddSecondMoment(const double* x, const double* weights, int rows, int d, double* s) {
  FixBlocking();
  const Eigen::Map<const Matrix> in(x, rows, d);
  // The lower triangle of a row-major matrix is the upper one of its column-major view, which is
  // what Eigen's update is fastest with.
  Eigen::Map<Eigen::MatrixXd> sum(s, d, d);
  if (weights == nullptr) {
    sum.selfadjointView<Eigen::Upper>().rankUpdate(in.transpose());
    return;
  }
  Matrix scaled = in;
  for (int r = 0; r < rows; ++r) scaled.row(r) *= std::sqrt(weights[r]);
  sum.selfadjointView<Eigen::Upper>().rankUpdate(scaled.transpose());
}

std::vector<double> Symmetric(const std::vector<double>& lower, int d, double factor) {
  std::vector<double> s(lower.size());
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j <= i; ++j)
      s[i * d + j] = s[j * d + i] = lower[size_t{1} * i * d + j] * factor;
  }
  return s;
}

absl::StatusOr<Spectrum> SpectrumOf(const std::vector<double>& s, int d) {
  RETURN_IF_ERROR(CheckCovariance(s, d, "the covariance"));
  ASSIGN_OR_RETURN(const Solver solver, Decompose(View(s, d)));
  return Describe(solver.eigenvalues());
}

absl::StatusOr<OscarFit> FitOscar(const std::vector<double>& s, int d) {
  RETURN_IF_ERROR(CheckCovariance(s, d, "the covariance"));
  ASSIGN_OR_RETURN(const Solver solver, Decompose(View(s, d)));
  OscarFit fit;
  fit.spectrum = Describe(solver.eigenvalues());
  const Matrix rh = WithFixedSigns(solver.eigenvectors()) * Hadamard(d);
  Matrix m(d, d);
  for (int j = 0; j < d; ++j) m.col(j) = rh.col(BitReversed(d - 1 - j, d));
  fit.rotation = Values(m);
  return fit;
}

absl::StatusOr<ShapedFit> FitShaped(const std::vector<double>& s_k, const std::vector<double>& s_q,
                                    int d, double t) {
  ShapedFit fit;
  RETURN_IF_ERROR(CheckCovariance(s_k, d, "the covariance of the rows"));
  RETURN_IF_ERROR(CheckCovariance(s_q, d, "the second moment of the queries"));
  ASSIGN_OR_RETURN(fit.keys, SpectrumOf(s_k, d));
  ASSIGN_OR_RETURN(fit.queries, SpectrumOf(s_q, d));
  const Matrix k = WithRidge(s_k, d), q = WithRidge(s_q, d);
  ASSIGN_OR_RETURN(const Matrix root, Power(k, 0.5));
  ASSIGN_OR_RETURN(const Matrix inverse_root, Power(k, -0.5));
  ASSIGN_OR_RETURN(const Matrix between, Power(root * q * root, t));
  ASSIGN_OR_RETURN(const Matrix half, Power(inverse_root * between * inverse_root, 0.5, 1e-10));
  ASSIGN_OR_RETURN(const Solver spread, Decompose(half * k * half));
  Matrix a = Hadamard(d) * WithFixedSigns(spread.eigenvectors()).transpose() * half;
  a /= std::sqrt((a * k * a.transpose()).trace() / d);
  const Matrix inverse = a.partialPivLu().inverse();
  Matrix w = inverse.transpose() * q * inverse;
  w = ((w + w.transpose()) / 2).eval();
  w *= d / w.trace();
  fit.inverse_error = (a * inverse - Matrix::Identity(d, d)).cwiseAbs().maxCoeff();
  ASSIGN_OR_RETURN(const Solver of_square, Decompose(a * a.transpose()));
  fit.condition = std::sqrt(Describe(of_square.eigenvalues()).condition);
  fit.transform = Values(a);
  fit.inverse = Values(inverse);
  fit.metric = Values(w);
  return fit;
}

}  // namespace oscarkv
