// The persistent kernel as a library for a test: one call runs every block, one after the other.
#include "persistent.cu"

static const Arguments *current;
static void run_thread() { t2_reverse(*current); }

extern "C" void t2_emulate(const Arguments *arguments) {
  current = arguments;
  launch(run_thread, (arguments->num_samples + SAMPLES - 1) / SAMPLES, EMULATED_THREADS, T2_SHARED_BYTES);
}
