// How much each row of a kv head matters: what an error of it does to the outputs of attention.
//
// A change n of key i moves the output of a query t by P_ti (v_i - o_t) (q_t . n) / sqrt(d), and a
// change of value i by P_ti n. Errors of different rows are independent, so their squares add up
// over the queries that read the row as codes. Rows that nobody attends to, however large, should
// not shape a codec; plain covariances let them.
#pragma once

#include <vector>

#include "model/transformer.h"

namespace oscarkv {

struct RowImportance {
  // [tokens]: root of the summed squares of P_ti |v_i - o_t| and of P_ti, |.| in the metric of the
  // output projection; 0 for rows that no query reads as codes.
  std::vector<double> key, value;
  // [group][tokens]: the sum over rows of (P_ti |v_i - o_t|)^2, what q_t counts for; 0 for queries
  // that were not looked at.
  std::vector<double> query;
};

// One kv head of one prompt. Looks at every 4th query: the sums change little and cost a quarter.
// `output_gram`: [d, d], as Collected::output_gram. Memory: a few hundred floats per token.
RowImportance ImportanceOf(const Transformer::LayerActivations& a, int num_heads, int num_kv_heads,
                           int head_dim, int head, const std::vector<double>& output_gram);

}  // namespace oscarkv
