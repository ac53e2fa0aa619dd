#!/usr/bin/env bash
# Usage: check_isa_symbols.sh BUILD_DIR
# Object files of csrc/cpu/isa and csrc/formats/search are compiled with their own instruction sets. A weak symbol in
# one (an inline function or a template's instance that was not inlined) may be the copy that the linker keeps for the
# whole program, which then dies of an illegal instruction on a lesser machine. So there must be none, and its tables,
# of kernels, limits and searches, are all that a set defines for others. A reference to the handler of exceptions is
# no code.
set -euo pipefail
build=${1:?usage: check_isa_symbols.sh BUILD_DIR}
mapfile -t objects < <(find "$build" \( -path '*csrc/cpu/isa/*' -o -path '*csrc/formats/search/*' \) -name '*.cpp.o' | sort)
[ ${#objects[@]} -gt 0 ] || { echo "check_isa_symbols: no such object files under $build" >&2; exit 1; }
failed=0
for object in "${objects[@]}"; do
  isa=$(basename "$(dirname "$object")")
  [ "$isa" != search ] || isa=$(basename "$object" .cpp.o)
  # V, W, u: weak or unique; upper-case letters but U: defined for others.
  shared=$(nm -C --defined-only "$object" | awk '$2 ~ /^[A-TV-Zuvw]$/' |
    grep -Ev " gristmill::(cpu::${isa}_(kernels|limits)\(\)|formats::k[A-Za-z0-9]+Search)$| DW\.ref\.__gxx_personality_v0$" || true)
  if [ -n "$shared" ]; then
    printf '%s: symbols shared with other object files:\n%s\n' "$isa" "$shared" >&2
    failed=1
  else
    echo "check_isa_symbols: $isa: ok"
  fi
done
exit $failed
