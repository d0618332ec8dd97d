"""User towers on an NVIDIA GPU: the exact engine as one CUDA graph, and the reverse process as one kernel."""
