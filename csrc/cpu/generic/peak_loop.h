// A loop of nothing but one instruction on twelve independent sums, more than its latency times how many start in a
// cycle. The twelve are one block of assembly: of anything else, compilers keep some of the sums in memory.
#pragma once

#include <cstdint>

// Text: the instruction for each of the sums %0 to %11, with %12 as both factors.
#define GRISTMILL_ON_SUMS(instruction)                                                                        \
  instruction " %12, %12, %0\n\t" instruction " %12, %12, %1\n\t" instruction " %12, %12, %2\n\t" instruction \
              " %12, %12, %3\n\t" instruction " %12, %12, %4\n\t" instruction " %12, %12, %5\n\t" instruction \
              " %12, %12, %6\n\t" instruction " %12, %12, %7\n\t" instruction " %12, %12, %8\n\t" instruction \
              " %12, %12, %9\n\t" instruction " %12, %12, %10\n\t" instruction " %12, %12, %11"

// Defines `int64_t name(int64_t iterations)`, which repeats `text` on sums of type T that start at zero and returns all
// lanes of all sums as total(T) adds them up. `constraint`: the assembler's class of registers, "x" or "v";
// what follows are the registers that the text uses beside them.
#define GRISTMILL_PEAK_LOOP(name, text, constraint, T, zero, one, total, ...)                                       \
  int64_t name(int64_t iterations) {                                                                                \
    T a = zero, b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a, l = a;                        \
    const T factor = one;                                                                                           \
    for (; iterations > 0; --iterations)                                                                            \
      asm volatile(text                                                                                             \
                   : "+" constraint(a), "+" constraint(b), "+" constraint(c), "+" constraint(d), "+" constraint(e), \
                     "+" constraint(f), "+" constraint(g), "+" constraint(h), "+" constraint(i), "+" constraint(j), \
                     "+" constraint(k), "+" constraint(l)                                                           \
                   : constraint(factor)                                                                             \
                   : __VA_ARGS__);                                                                                  \
    return total(a) + total(b) + total(c) + total(d) + total(e) + total(f) + total(g) + total(h) + total(i) +       \
           total(j) + total(k) + total(l);                                                                          \
  }
