// The OpenMP runtime that g++ brings, and torch, also where another compiler has one of its own.
#pragma once

// Of omp.h, which comes with each of them.
extern "C" void omp_set_num_threads(int count);
