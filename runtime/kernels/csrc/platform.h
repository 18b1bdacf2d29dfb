// What differs between host and device compilers, and between the instruction sets that one library holds.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ODE_BOTH __host__ __device__ __forceinline__
#define ODE_FN __device__ inline
#define ODE_INLINE __device__ __forceinline__
#define ODE_CALL __device__ __noinline__  // one copy for all uses: a launch reads its code once, mostly from afar
#else
#define ODE_BOTH __attribute__((always_inline))
#define ODE_FN inline
#define ODE_INLINE inline __attribute__((always_inline))  // a loop over a call that stays a call is not vector code
#define ODE_CALL inline
#endif

// Every object of the library is compiled from the same headers for another instruction set. Without a namespace of its
// own the linker would keep one copy of an inline function for all of them, possibly one that this machine cannot run.
#ifndef ODE_ISA
#define ODE_ISA portable
#endif

namespace odestream {

constexpr int LANES = 16;  // floats that a packed matrix keeps together; every buffer's length is a multiple

ODE_BOTH constexpr int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

}  // namespace odestream
