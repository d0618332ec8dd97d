// The noise kernel as a library for a test.
#include "noise.cu"

static const NoiseArguments *current;
static void run_thread() { t2_noise(*current); }

extern "C" void t2_emulate(const NoiseArguments *arguments) {
  current = arguments;
  launch(run_thread, (int)((arguments->num_total + THREADS - 1) / THREADS), EMULATED_THREADS, 16);
}
