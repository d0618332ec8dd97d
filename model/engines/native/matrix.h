// Products of rows with packed weights, in registers: the time of the tower is spent here.
//
// A block of R rows times V vectors of outputs stays in registers while the depth is walked through: a
// vector of weights is loaded once for all rows, a number of a row is spread over a vector once for all
// outputs. Rows may overlap: a convolution reads three padded rows as one of three times the length.
#pragma once
#include "activation.h"

namespace T2_VARIANT {

#if defined(__AVX512F__)
constexpr int MAX_VECTORS = 4;
constexpr int MAX_ROWS[MAX_VECTORS + 1] = {0, 12, 12, 9, 6};  // of 32 registers
#else
constexpr int MAX_VECTORS = 2;
constexpr int MAX_ROWS[MAX_VECTORS + 1] = {0, 8, 6};  // of 16 registers
#endif

// One number at a time, multiplied and added in fp32.
struct Single {
  typedef float Number;
  typedef Floats Spread;
  static constexpr int PAIR = 1;  // numbers of the depth that one instruction takes
  static constexpr bool EXACT = true;
  T2_INLINE Spread spread(const Number *from) { return all(*from); }
  T2_INLINE Spread weights(const Number *from) { return load(from); }
  T2_INLINE Floats multiply_add(Spread a, Spread b, Floats sum) { return sum + a * b; }
  T2_INLINE void put(Number *to, Floats values) { store(to, values); }
  T2_INLINE Number convert(float value) { return value; }
};

#if defined(__AVX512BF16__)
// Two neighbouring bf16 numbers at a time, summed in fp32.
struct Half {
  typedef uint16_t Number;
  typedef __m512bh Spread;
  static constexpr int PAIR = 2;
  static constexpr bool EXACT = false;
  T2_INLINE Spread spread(const Number *from) {
    int32_t pair;
    memcpy(&pair, from, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  T2_INLINE Spread weights(const Number *from) { return (__m512bh)_mm512_loadu_si512(from); }
  T2_INLINE Floats multiply_add(Spread a, Spread b, Floats sum) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, a, b);
  }
  T2_INLINE void put(Number *to, Floats values) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)values));
  }
  T2_INLINE Number convert(float value) {  // to nearest, halves to even; weights are finite
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (Number)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};
#endif

// What becomes of a finished sum.
struct Plain {
  typedef float Number;
  T2_INLINE void put(float *to, Floats values) { store(to, values); }
};
template <class Kind>
struct Activated {
  typedef typename Kind::Number Number;
  T2_INLINE void put(Number *to, Floats values) { Kind::put(to, silu<Kind::EXACT>(values)); }
};

// Weights in the order in which they are read: chunks of up to MAX_VECTORS vectors of outputs.
template <class Kind>
struct Matrix {
  int depth, outputs;  // outputs: padded to whole vectors
  typename Kind::Number *data;

  static size_t size(int depth, int outputs) { return (size_t)depth * outputs; }

  // value(k, n): weight of input k for output n, for every padded output.
  template <class Value>
  void pack(Arena &arena, int depth_, int outputs_, Value value) {
    depth = depth_, outputs = outputs_;
    data = arena.take<typename Kind::Number>(size(depth, outputs));
    if (!data) return;
    typename Kind::Number *to = data;
    for (int first = 0, vectors; first < outputs; first += vectors * W) {
      vectors = chunk((outputs - first) / W);
      for (int k = 0; k < depth; k += Kind::PAIR)
        for (int n = first; n < first + vectors * W; ++n)
          for (int pair = 0; pair < Kind::PAIR; ++pair) *to++ = Kind::convert(value(k + pair, n));
    }
  }

  // How many of the remaining vectors the next chunk takes: even shares.
  static int chunk(int remaining) {
    int chunks = (remaining + MAX_VECTORS - 1) / MAX_VECTORS;
    return (remaining + chunks - 1) / chunks;
  }
};

template <class Kind, class Finish, int R, int V>
static void block(const typename Kind::Number *a, ptrdiff_t stride, int depth,
                  const typename Kind::Number *weights, const float *add, ptrdiff_t add_stride,
                  const float *bias, typename Finish::Number *out, ptrdiff_t out_stride) {
  Floats sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = load(add + r * add_stride + v * W) + load(bias + v * W);
#pragma GCC unroll 1
  for (int k = 0; k < depth; k += Kind::PAIR) {
    typename Kind::Spread w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) w[v] = Kind::weights(weights + v * W * Kind::PAIR);
    weights += V * W * Kind::PAIR;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      typename Kind::Spread x = Kind::spread(a + r * stride + k);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = Kind::multiply_add(x, w[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) Finish::put(out + r * out_stride + v * W, sum[r][v]);
}

// The block of exactly `rows` rows.
template <class Kind, class Finish, int R, int V, class... Arguments>
T2_INLINE void block_of(int rows, Arguments... arguments) {
  if constexpr (R > 1) {
    if (rows < R) return block_of<Kind, Finish, R - 1, V>(rows, arguments...);
  }
  block<Kind, Finish, R, V>(arguments...);
}

// out = finish(add + bias + a · weights), row by row. Strides count numbers; `add` with stride 0 is one
// row for all.
template <class Kind, class Finish, int V>
static void chunk_product(int rows, const typename Kind::Number *a, ptrdiff_t stride, int depth,
                          const typename Kind::Number *weights, const float *add, ptrdiff_t add_stride,
                          const float *bias, typename Finish::Number *out, ptrdiff_t out_stride) {
  int blocks = (rows + MAX_ROWS[V] - 1) / MAX_ROWS[V];
  for (int done = 0, left = blocks; left > 0; --left) {
    int size = (rows - done + left - 1) / left;  // even shares: no short block at the end
    block_of<Kind, Finish, MAX_ROWS[V], V>(size, a + done * stride, stride, depth, weights,
                                           add + done * add_stride, add_stride, bias,
                                           out + done * out_stride, out_stride);
    done += size;
  }
}

template <class Kind, class Finish>
static void product(int rows, const typename Kind::Number *a, ptrdiff_t stride, const Matrix<Kind> &matrix,
                    const float *add, ptrdiff_t add_stride, const float *bias,
                    typename Finish::Number *out, ptrdiff_t out_stride) {
  const typename Kind::Number *weights = matrix.data;
  for (int first = 0, vectors; first < matrix.outputs; first += vectors * W) {
    vectors = Matrix<Kind>::chunk((matrix.outputs - first) / W);
#define T2_CHUNK(V)                                                                                  \
  case V:                                                                                            \
    chunk_product<Kind, Finish, V>(rows, a, stride, matrix.depth, weights, add + first, add_stride, \
                                   bias + first, out + first, out_stride);                           \
    break;
    switch (vectors) {
      T2_CHUNK(1)
      T2_CHUNK(2)
#if defined(__AVX512F__)
      T2_CHUNK(3)
      T2_CHUNK(4)
#endif
    }
#undef T2_CHUNK
    weights += (size_t)matrix.depth * vectors * W;
  }
}

}  // namespace T2_VARIANT
