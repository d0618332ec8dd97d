// The noise of all steps of a batch, in the order in which the reverse process adds it (model/noise.py).
//
// For the graph engine, whose steps are torch's. Not run on a GPU: compiled for sm_75, 80, 86, 89 and 90, and
// run over a stand-in for device.h.
#ifdef __CUDACC__
#include "device.h"
#else
#include "emulated_device.h"
#endif
#include "philox.h"

constexpr int THREADS = 256;

struct alignas(16) Four {
  float x, y, z, w;
};

struct NoiseArguments {
  const Key *keys;       // (samples,)
  const int *steps;      // (steps,) the number of each
  Four *normals;         // (steps, samples, blocks)
  int num_samples, num_blocks;  // blocks of four numbers in a sample's step
  long long num_total;   // blocks in all
};

T2_KERNEL(THREADS) t2_noise(const NoiseArguments noise) {
  const long long at = (long long)block_index() * THREADS + thread_index();
  if (at >= noise.num_total) return;
  const Word block = (Word)(at % noise.num_blocks);
  const long long row = at / noise.num_blocks;
  const Quad words =
      philox(noise.keys[row % noise.num_samples], (Word)noise.steps[row / noise.num_samples], block);
  Four four;
  exact_normals(words.x, words.y, four.x, four.y);
  exact_normals(words.z, words.w, four.z, four.w);
  noise.normals[at] = four;
}
