// The inner kernels that exist once per instruction set, as a table of functions.
//
// Everything here works on float32 in registers; float32, bfloat16 and float16 are converted on load and store.
// No value depends on how work is cut into calls: each output element is computed from its own row and column by one
// fixed sequence of operations, which is what makes the operations batch-invariant.
#pragma once

#include <cstdint>
#include <limits>

#include "common/view.h"

namespace moe {

// Values that share a factor in NF4.
constexpr int64_t NF4_BLOCK = 64;

// The left operand of a product: element (m, k) lies at base + m * row_stride + k * col_stride, one stride being 1.
// A quantized one has col_stride 1 and factors: of NF4_BLOCK consecutive k of a row (NF4), or of a row (int8).
struct Operand {
  const char* base = nullptr;
  DType dtype = DType::f32;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
  const float* scale = nullptr;
  int64_t scale_stride = 0;    // from row to row
  const char* next = nullptr;  // rows of the same kind that will be read after these: worth fetching

  Operand at(int64_t m, int64_t k) const {
    Operand part = *this;
    part.base += bytes_of(dtype, m * row_stride + k * col_stride);
    if (scale) part.scale += m * scale_stride + (dtype == DType::nf4 ? k / NF4_BLOCK : 0);
    return part;
  }
};

// Rows of a matrix, picked by an index where there is one: row i lies at base + (index ? index[i] : i) * stride.
struct Rows {
  const char* base = nullptr;
  DType dtype = DType::f32;
  int64_t stride = 0;
  const int32_t* index = nullptr;
  const float* scale = nullptr;  // factor of row i where given

  const char* at(int64_t i, int64_t column) const {
    return base + ((index ? index[i] : i) * stride + column) * item_size(dtype);
  }
  Rows from(int64_t first) const {
    Rows rest = *this;
    if (index)
      rest.index += first;
    else
      rest.base += first * stride * item_size(dtype);
    if (scale) rest.scale += first;
    return rest;
  }
};

// Memory that will be read next: worth fetching meanwhile.
struct Upcoming {
  const char* at = nullptr;
  const char* end = nullptr;
};

// Rows of an output: row i lies at data + index[i] * stride elements, and is added to the row at base where there is
// one.
struct RowsOut {
  char* data = nullptr;
  const char* base = nullptr;
  DType dtype = DType::f32;
  int64_t stride = 0;
  const int32_t* index = nullptr;

  RowsOut from(int64_t first) const {
    RowsOut rest = *this;
    rest.index += first;
    return rest;
  }
};

enum class Activation : int32_t { silu = 0, gelu = 1, gelu_tanh = 2, relu = 3, relu2 = 4, gpt_oss = 5 };

// With a gate, the gate is clamped from above at the limit and up on both sides; not for gpt_oss, which has its own.
struct LimitedActivation {
  LimitedActivation(Activation kind_, float limit_ = std::numeric_limits<float>::infinity())
      : kind(kind_), limit(limit_) {}

  Activation kind;
  float limit;
};

// What the softmax of one row of logits gives besides its entries.
struct RowStatistics {
  float logsumexp;
  float entropy;
};

// Where word (w, n) of a packed operand with few columns lies: a block of a column fills a cache line, and the blocks
// of one stretch of k lie side by side.
constexpr int64_t FEW_WORDS = 16;
inline int64_t few_word(int64_t columns, int64_t w, int64_t n) {
  return (w - w % FEW_WORDS) * columns + n * FEW_WORDS + w % FEW_WORDS;
}

// One way of multiplying: what the packed right operand looks like, and the product that reads it. Its elements are
// 32-bit words of `unit` consecutive k. Word (w, n) lies at b[w * ldb + n], or, with at most few_columns columns, in
// blocks of FEW_WORDS words of each column in turn (see few_word).
struct Form {
  DType left;         // of the left operands that the backward makes
  int64_t unit;       // 1: a word is a float32; 2: a pair of bfloat16, the first in the low half
  int64_t depth;      // a sum may be cut into calls at multiples of so many words; 0: it may not be cut
  int64_t quantum;    // pack_block takes so many k at a time
  int64_t planes;     // a packed operand is so many of the above, and, where it may not be cut, a factor of each column
  int64_t tile_rows;  // rows of the left operand that one register tile covers
  int64_t few_columns;   // up to so many columns, the product runs along the weight's rows instead of along the columns
  int64_t tail_columns;  // up to so many columns are cheaper by themselves than as part of another vector
  int64_t scratch;       // floats of scratch that `product` needs
  // c[m][n] (+)= Σ_k a(m, k) · b(k, n), c being [m * ldc + n]. With more than few_columns columns ldb and ldc are
  // multiples of `lanes`, the columns up to the next multiple exist in b and c, and c has space for rows up to the next
  // multiple of tile_rows. Where `depth` is no multiple of `unit`, the rest of the last word is zero.
  void (*product)(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b, int64_t ldb,
                  int64_t columns, bool accumulate, float* scratch);
  // The same for many columns and a few k, where k are rows of x: no other product has to agree with it to the bit.
  void (*product_over_rows)(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                            int64_t ldb, int64_t columns, bool accumulate, float* scratch);
  // b(j, i) = rows(i, first_column + j): a row of `rows` becomes a column. Columns from `count` to ldb are zero where
  // there are more than a few.
  void (*pack_columns)(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t first_column, int64_t columns);
  // b(i, j) = rows(i, first_column + j) in the layout for many columns; those from `columns` to ldb are zero.
  void (*pack_rows)(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t first_column, int64_t columns);
  // b(k, n) = src[k * ld + n] from word `first` on, for k < depth and n < columns.
  void (*pack_block)(float* b, int64_t ldb, int64_t first, const float* src, int64_t ld, int64_t depth,
                     int64_t columns);

  // Where not 0, b lies in panels of so many columns instead, at every number of columns: word (w, n) at
  // b[n / panel * ldb + w * panel + n % panel], and ldb is the distance from panel to panel.
  int64_t panel = 0;
  // Rows of one expert that are worked on together at most: their packed activations and one block of results stay in
  // the second-level cache.
  int64_t chunk_rows = 192;

  int64_t ldb(int64_t depth, int64_t pitch) const { return panel ? words(depth) * panel : pitch; }
  // Words that a packed operand of this depth has room for, a column.
  int64_t words(int64_t depth) const { return planes * plane(depth) + (whole() ? FEW_WORDS : 0); }
  int64_t plane(int64_t depth) const { return ((depth + unit - 1) / unit + FEW_WORDS - 1) / FEW_WORDS * FEW_WORDS; }
  // Whether columns are packed from whole rows at a time only: pack_columns with all of a row, and no pack_block.
  bool whole() const { return depth == 0; }
};

// Products for the backward of bfloat16 weights that take data as it lies, row by row. An instruction set without them
// makes its gradients with a Form.
struct RowForm {
  // Σ_k a(n, k) · w(o, k) for n < count, o < columns, k < depth, w being bfloat16 and a rounded to it: the sums stay in
  // `scratch`. Each is added up in the same order whatever `count` and `columns` are.
  void (*product)(const Rows& a, int64_t count, int64_t depth, const Operand& w, int64_t columns, char* scratch);
  // Rows [first, first + rows) of such sums, to rows of float32 or bfloat16 that lie out_stride bytes apart; bfloat16
  // goes past the caches.
  void (*results)(char* out, DType dtype, int64_t out_stride, int64_t first, int64_t rows, int64_t count,
                  const Operand& w, int64_t columns, char* scratch);
  // Columns that `count` rows should meet at a time.
  int64_t (*product_columns)(int64_t count);
  // out(m, c) (+)= Σ_n a(n, m) · b(n, c) for m < features, c < columns, n < count, with one rounding. out is bfloat16,
  // its rows out_stride bytes apart. At most outer_block(count) features. `stream`: results go past the caches, which
  // is faster unless the system has just cleared the memory.
  void (*outer)(char* out, int64_t out_stride, const Rows& a, int64_t features, const Rows& b, int64_t columns,
                int64_t count, bool add, bool stream, char* scratch);
  int64_t (*outer_block)(int64_t count);
  // Bytes of scratch that they need.
  int64_t (*product_scratch)(int64_t count, int64_t columns);
  int64_t (*outer_scratch)(int64_t count);
};

struct Kernels {
  const char* name;
  int64_t lanes;           // floats in a vector
  const Form* floats;      // any operands but quantized ones, in float32
  const Form* pairs;       // bfloat16 operands
  const Form* nf4;         // NF4 weights, the right operand to bfloat16's precision
  const Form* nf4_floats;  // NF4 weights, the right operand to float32's
  const Form* int8;        // int8 weights, likewise
  const Form* int8_floats;
  const Form* int8_int8;  // int8 weights, the right operand rounded to int8
  const RowForm* rows;    // of bfloat16 weights, or null

  // The form for a weight and data of these types. `dynamic`: int8 weights meet data rounded to int8, row by row.
  const Form& form(DType weight, DType data, bool dynamic = false) const {
    if (weight == DType::bf16) return *pairs;
    if (weight == DType::nf4) return data == DType::bf16 ? *nf4 : *nf4_floats;
    if (weight == DType::i8) return dynamic ? *int8_int8 : data == DType::bf16 ? *int8 : *int8_floats;
    return *floats;
  }

  // dst[j * ld + i] = rows(i, first_column + j), rows from `count` to ld zero.
  void (*gather_transposed)(float* dst, int64_t ld, const Rows& rows, int64_t count, int64_t first_column,
                            int64_t columns);
  // out(i, j) = src[j * ld + i], for i < count, j < columns; out_stride in elements.
  void (*scatter_transposed)(char* out, DType dtype, int64_t out_stride, const float* src, int64_t ld, int64_t count,
                             int64_t columns);
  // The same for results that nobody reads soon: past the caches, where whole cache lines can be written.
  void (*stream_transposed)(char* out, DType dtype, int64_t out_stride, const float* src, int64_t ld, int64_t count,
                            int64_t columns);

  void (*load)(float* dst, const char* src, DType dtype, int64_t count);
  // dst[j] = value (row, first + j) of a quantized operand; for NF4 `first` and `count` are multiples of NF4_BLOCK.
  void (*dequantize)(float* dst, const Operand& a, int64_t row, int64_t first, int64_t count);
  // dst[i] = code[bytes[i]] · nested[(first + i) / 256] + offset: the factors that bitsandbytes stores in bytes.
  void (*nested_scales)(float* dst, const uint8_t* bytes, int64_t first, int64_t count, const float* nested,
                        const float* code, float offset);
  void (*store)(char* dst, DType dtype, const float* src, int64_t count);
  // dst += factor · src
  void (*add_scaled)(float* dst, float factor, const char* src, DType dtype, int64_t count);
  // Σ a · b, in an order that depends on `count` alone.
  float (*dot)(const char* a, DType a_dtype, const char* b, DType b_dtype, int64_t count);
  // acc[i] += a[i] · b[i]; without b, acc[i] += a[i]
  void (*add_products)(float* acc, const float* a, const float* b, int64_t count);
  // out[i] = a[i] · b[i]
  void (*multiply)(float* out, const float* a, const float* b, int64_t count);
  // row[i] += value
  void (*add_value)(float* row, float value, int64_t count);

  // act = f(gate) · up, or f(gate) where up is null.
  void (*activate)(const LimitedActivation& activation, float* act, const float* gate, const float* up, int64_t count);
  // act as above; gate and up are replaced by their gradients, given grad, the activation's.
  void (*activate_backward)(const LimitedActivation& activation, float* act, float* gate, float* up, const float* grad,
                            int64_t count);

  // p = softmax(logits); entries of +inf share the mass; a NaN, or nothing but -inf, makes all NaN. `padded` is the
  // row's length rounded up to whole vectors: logits are -inf there, and p has that space.
  RowStatistics (*softmax)(float* p, const float* logits, int64_t padded);
  // out = 1 / (1 + exp(-x)), in whole vectors.
  void (*sigmoid)(float* out, const float* x, int64_t padded);

  // Products with a small dimension (low_rank.h): h[i * ldh + r] = Σ_k rows(i, k) · a(r, k) for i < count and r < rank,
  // where a has the type of the rows and col_stride 1;
  void (*shrink)(float* h, int64_t ldh, const Rows& rows, int64_t count, const Operand& a, int64_t rank, int64_t depth,
                 Upcoming upcoming);
  // and out(i, first + j) = Σ_r h[i * ldh + r] · b(j, r) (+ base) for i < count and j < columns, where b has the type
  // of the output and is packed: `rank` floats, rounded up to 16, for each of `columns`, rounded up to expand_columns.
  int64_t expand_columns;
  void (*pack_expand)(float* packed, const Operand& b, int64_t columns, int64_t rank);
  void (*expand)(const RowsOut& out, int64_t first, const float* h, int64_t ldh, int64_t count, const float* packed,
                 int64_t rank, int64_t columns);

  // A step of decoding (attention.h), for rows of `count` or `size` values, a multiple of 16 (of 32 for `turn`).
  // out = weight · x / √(mean x² + eps) (+ base); `rounds_first`: what is multiplied by weight is rounded to dtype.
  void (*rms_norm)(char* out, const char* x, const char* base, DType dtype, const float* weight, float eps,
                   bool rounds_first, int64_t count);
  // x = x · cos + (halves of x exchanged) · sin.
  void (*turn)(char* x, DType dtype, const float* cos, const float* sin, int64_t count);
  // out(h) = Σ_c softmax(scale · queries(h) · keys(c)) · values(c) for h < heads and c < count. `scores` has space for
  // `heads` rows of count, rounded up to whole vectors.
  void (*attend)(char* out, const char* queries, DType dtype, int64_t heads, int64_t size, const char* keys,
                 const char* values, int64_t count, float scale, float* scores);

  // `count` blocks of 64 bfloat16 from 96 bytes each (packing.h); `out` may overlap blocks that come later in memory.
  void (*unpack_bf16)(char* out, const char* blocks, int64_t count, int base);
};

}  // namespace moe
