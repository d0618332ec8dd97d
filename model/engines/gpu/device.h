// What the kernels need of an NVIDIA GPU beyond C++, from compute capability 7.5 on; no header of CUDA's.
//
// Fragments are those of PTX's mma.m16n8k16: with lane = 4 * g + t, a product of 16 rows by 8 columns leaves
// in a lane columns 2t and 2t + 1 of row g, then of row g + 8.
// Not run: compiled for sm_75, 80, 86, 89 and 90; tests run the kernels over a stand-in for this file.
#pragma once

typedef unsigned int Word;
typedef unsigned long long Key;
typedef unsigned short Number;  // 16 bits: fp16, or bf16 with T2_BF16
struct alignas(16) Quad {
  Word x, y, z, w;
};

#define T2_DEVICE __device__ __forceinline__
#define T2_CONSTANT __host__ __device__ constexpr
#define T2_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define T2_SHARED(name) extern __shared__ Quad name[]

T2_DEVICE int thread_index() { return threadIdx.x; }
T2_DEVICE int block_index() { return blockIdx.x; }
T2_DEVICE void synchronize() { __syncthreads(); }
T2_DEVICE Word high_product(Word a, Word b) { return __umulhi(a, b); }
T2_DEVICE Word of_neighbour(Word value) { return __shfl_xor_sync(0xffffffffu, value, 1); }

// 16 by 16 numbers, each lane naming half a row: rows lane % 16, columns 8 * (lane / 16) on.
T2_DEVICE void load_fragment(Word (&a)[4], const Number *half_row) {
  Word address = (Word)__cvta_generic_to_shared(half_row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address)
               : "memory");
}

// sums += a (16 by 16) times b (16 by 8)
T2_DEVICE void multiply_add(float (&sums)[4], const Word (&a)[4], Word b0, Word b1) {
#if __CUDA_ARCH__ >= 800
#ifdef T2_BF16
#define T2_KIND "bf16.bf16"
#else
#define T2_KIND "f16.f16"
#endif
  asm("mma.sync.aligned.m16n8k16.row.col.f32." T2_KIND ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
#ifdef T2_BF16
#error bf16 needs compute capability 8.0: leave T2_BF16 out
#endif
#define T2_HALF_OF_IT \
  "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
  asm(T2_HALF_OF_IT
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm(T2_HALF_OF_IT
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// Two numbers to the nearest, the first in the lower half.
T2_DEVICE Word pack(float first, float second) {
  Word packed;
#if __CUDA_ARCH__ >= 800
#ifdef T2_BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
#endif
#else
  asm("{ .reg .f16 low, high;\n cvt.rn.f16.f32 low, %1;\n cvt.rn.f16.f32 high, %2;\n"
      " mov.b32 %0, {low, high}; }"
      : "=r"(packed)
      : "f"(first), "f"(second));
#endif
  return packed;
}

// Hyperbolic tangent, relative error up to 2^-11: as coarse as the numbers that it ends in.
T2_DEVICE float coarse_tanh(float value) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// Natural logarithm, and sine and cosine for angles in [-π, π], on the special function unit.
T2_DEVICE float fast_log(float value) { return __logf(value); }
T2_DEVICE float fast_root(float value) {
  float result;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}
T2_DEVICE void fast_circle(float angle, float &cosine, float &sine) { __sincosf(angle, &sine, &cosine); }

// The same to rounding; the angle in half turns.
T2_DEVICE float exact_log(float value) { return logf(value); }
T2_DEVICE float exact_root(float value) { return sqrtf(value); }
T2_DEVICE void exact_circle(float half_turns, float &cosine, float &sine) {
  sincospif(half_turns, &sine, &cosine);
}
