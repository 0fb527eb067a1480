"""What the CUDA benchmarks share: models of a shape, ways to run them, measurements, targets."""
