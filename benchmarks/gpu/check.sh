#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds, runs the kernels' tests and the compute sanitizer on them, and
# measures the GPU's limits, each kernel alone, and models of QwQ-32B's shape.
#   benchmarks/gpu/check.sh OUT_DIR [PART...]      parts: build tests logits limits kernels models python sanitizer
# Without parts all of them, figures before the sanitizer, which takes longest. A part is ok, FAILED or not run. What is
# timed is checked too: a wrong result is a line of the table and makes its part FAILED.
# Leaves in OUT_DIR: log.txt, build.txt, tests.txt, sanitizer.txt, bench.jsonl, table.txt, machine.txt. All else is in
# the build folder.
#
# Needs CUDA 12.8 or later, CMake, ninja and a C++20 compiler; no network. "python" also needs Python 3.10 or later with
# pip, numpy, gguf, tokenizers, jinja2, rich, prompt_toolkit, platformdirs, nanobind and scikit-build-core (carry as
# wheels those that the machine lacks, installed to a folder in PYTHONPATH); without them it is not run.
#
# Where a command may take ten minutes: "build tests logits limits kernels", then "models", then "python sanitizer". What
# hangs is ended: a test after 120 s, logits 60 s, limits 60 s, kernels 200 s, a model 130 s, python 200 s.
#   GRISTMILL_GPU_BUILD    build folder that outlives the run (default: gristmill-gpu-build in TMPDIR or /tmp)
#   GRISTMILL_GPU_MIXES    models to measure (default: Q4_K_M Q4_0 Q8_0 F16)
#   GRISTMILL_GPU_LAYERS   layers of those models (default: 64)
#   GRISTMILL_GPU_SANITIZER_SECONDS    after which the sanitizer begins no other test (default: 400), and
#   GRISTMILL_GPU_TEST_SECONDS         that a test may take under it (default: 100)
set -uo pipefail
[[ $# -ge 1 ]] || { sed -n '2,21s/^# \{0,1\}//p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
parts=("$@")
[[ $# -gt 0 ]] || parts=(build tests logits limits kernels models python sanitizer)
build=${GRISTMILL_GPU_BUILD:-${TMPDIR:-/tmp}/gristmill-gpu-build}
mixes=${GRISTMILL_GPU_MIXES:-Q4_K_M Q4_0 Q8_0 F16}
layers=${GRISTMILL_GPU_LAYERS:-64}
failed=0
say() { printf '%s\n' "$*" | tee -a "$out/log.txt"; }

command -v nvcc >/dev/null || export PATH=$PATH:/usr/local/cuda/bin
# The compute sanitizer where it is: on the PATH, beside nvcc, which may be a script elsewhere, or in a CUDA folder.
find_sanitizer() {
  local candidate
  for candidate in "$(command -v compute-sanitizer)" \
    "$(dirname "$(readlink -f "$(command -v nvcc || echo .)")")/compute-sanitizer" \
    /usr/local/cuda*/bin/compute-sanitizer /usr/local/cuda*/compute-sanitizer/compute-sanitizer; do
    [[ -x $candidate && ! -d $candidate ]] && printf '%s\n' "$candidate" && return
  done
}
sanitizer=$(find_sanitizer)

readonly not_run=77 # what a part returns that could not be run; it has said why

part_build() {
  local cuda=() generator=()
  command -v ninja >/dev/null && generator=(-G Ninja)
  cuda=("-DCMAKE_CUDA_COMPILER=$(command -v nvcc)")
  cmake -S . -B "$build" "${generator[@]}" "${cuda[@]}" -DCMAKE_BUILD_TYPE=Release -DGRISTMILL_PYTHON=OFF \
    -DGRISTMILL_TESTS=ON -DGRISTMILL_CUDA=ON -DGRISTMILL_ISA=none >"$out/build.txt" 2>&1 &&
    cmake --build "$build" -j "$(nproc)" --target gpu_tests gpu_bench gristmill_cuda >>"$out/build.txt" 2>&1 ||
    { tail -n 30 "$out/build.txt"; return 1; }
}

part_tests() {
  local test status bad=0 count=0
  : >"$out/tests.txt"
  for test in "$build"/tests/cuda/gpu_test_*; do
    [[ -x $test && ! -d $test ]] || continue
    echo "--- $(basename "$test")" >>"$out/tests.txt"
    count=$((count + 1)) status=0
    timeout 120 "$test" >>"$out/tests.txt" 2>&1 || status=$?
    if [[ $status == 0 ]]; then say "  $(basename "$test"): ok"; else
      bad=1
      say "  $(basename "$test"): FAILED ($status)"
      tail -n 8 "$out/tests.txt"
    fi
  done
  [[ $count -gt 0 ]] || { say "  no test was built" && return 1; }
  return "$bad"
}

# What the emulation cannot see: races, and reads of memory that nothing wrote. Several tests at a time, as long as
# sanitizer_seconds last; each verdict is in the log as soon as it is known, for a run may be cut off.
readonly sanitizer_seconds=${GRISTMILL_GPU_SANITIZER_SECONDS:-400} test_seconds=${GRISTMILL_GPU_TEST_SECONDS:-100}

check_one() { # TOOL TEST: one line of verdict, what it printed in a file of its own
  local name log options=() verdict
  name=$1-$(basename "$2")
  log=$logs/$name.txt
  # A test asks for more memory than there is, and is told so: that is no finding.
  [[ $1 != memcheck ]] || options=(--report-api-errors no)
  local began=$SECONDS status=0
  timeout "$test_seconds" "$sanitizer" --tool "$1" "${options[@]}" --error-exitcode 9 "$2" >"$log" 2>&1 || status=$?
  case $status in
    0) verdict="clean, $((SECONDS - began)) s" ;;
    124) verdict="no finding in $test_seconds s, not finished" ;;
    *) verdict="FAILED"$'\n'$(tail -n 12 "$log") ;;
  esac
  say "  $name: $verdict" | tee "$log.verdict"
}
part_sanitizer() {
  local test tool entry queue=() alone=() logs=$build/sanitizer began=$SECONDS late=0
  [[ -n $sanitizer ]] || { say "  there is no compute-sanitizer" && return "$not_run"; }
  rm -rf "$logs" && mkdir -p "$logs"
  for test in "$build"/tests/cuda/gpu_test_*; do
    [[ -x $test && ! -d $test ]] || continue
    for tool in memcheck racecheck; do
      # It fills the GPU's memory: with another beside it one of them would find too little.
      if [[ $test == */gpu_test_library ]]; then alone+=("$tool $test"); else queue+=("$tool $test"); fi
    done
  done
  for entry in "${queue[@]}"; do
    while [[ $(jobs -rp | wc -l) -ge $(($(nproc) / 2 + 1)) ]]; do wait -n; done
    if ((SECONDS - began > sanitizer_seconds)); then late=$((late + 1)); else check_one ${entry%% *} "${entry#* }" & fi
  done
  wait
  for entry in "${alone[@]}"; do
    if ((SECONDS - began > sanitizer_seconds)); then late=$((late + 1)); else check_one ${entry%% *} "${entry#* }"; fi
  done
  cat "$logs"/*.txt >"$out/sanitizer.txt"
  say "  $(grep -l ': clean' "$logs"/*.verdict | wc -l) clean," \
    "$(grep -l 'not finished' "$logs"/*.verdict | wc -l) not finished, $late not begun after $sanitizer_seconds s"
  ! grep -q FAILED "$logs"/*.verdict || return 1
  grep -q ': clean' "$logs"/*.verdict || return "$not_run"
}

bench() { timeout "$1" "$build/benchmarks/gpu/gpu_bench" "${@:2}" >>"$out/bench.jsonl" 2>>"$out/log.txt"; }
# A few layers against the CPU; and the same bits whatever the switches of docs/cuda.md say.
part_logits() {
  local mix setting status bad=0 first=${mixes%% *} usual bits
  for mix in $mixes; do
    status=0
    bench 60 "logits:$mix" || status=$?
    [[ $status == 0 ]] || { bad=1 && say "  logits $mix: FAILED ($status)"; }
  done
  usual=$(grep -F "$first, four layers, bits" "$out/bench.jsonl" | tail -n 1)
  for setting in GRAPHS=0 DEPENDENT_LAUNCH=0 SYNC=1; do
    bits=$(env "GRISTMILL_CUDA_$setting" timeout 60 "$build/benchmarks/gpu/gpu_bench" "logits:$first" \
      2>>"$out/log.txt" | grep -F ', bits')
    [[ -n $bits && $bits == "$usual" ]] ||
      { bad=1 && say "  GRISTMILL_CUDA_$setting: other bits than usual: $bits"; }
  done
  return "$bad"
}
part_limits() { bench 60 limits; }
part_kernels() { bench 200 kernels; }
part_models() {
  local mix status bad=0
  for mix in $mixes; do
    status=0
    bench 130 "model:$mix:$layers" || status=$?
    [[ $status == 0 ]] || { bad=1 && say "  model $mix: FAILED ($status)"; }
  done
  return "$bad"
}

part_python() { # the same library under the package and the command line
  local site=$build/site module missing=()
  for module in pip numpy gguf tokenizers jinja2 rich prompt_toolkit platformdirs nanobind scikit_build_core; do
    python3 -c "import $module" 2>/dev/null || missing+=("$module")
  done
  [[ ${#missing[@]} -eq 0 ]] || { say "  Python lacks ${missing[*]}" && return "$not_run"; }
  [[ -f $build/_cuda.so ]] || { say "  there is no library: run the part build" && return "$not_run"; }
  rm -rf "$site"
  timeout 150 python3 -m pip install -q --no-build-isolation --no-deps --config-settings=cmake.define.GRISTMILL_ISA=none \
    --config-settings=cmake.define.GRISTMILL_CUDA=OFF --target "$site" . >>"$out/log.txt" 2>&1 || return 1
  GRISTMILL_CUDA_LIBRARY=$build/_cuda.so PYTHONPATH=$site:${PYTHONPATH:-} \
    timeout 200 python3 benchmarks/gpu/through_python.py "$build/models" 2>&1 | tee -a "$out/log.txt"
}

{ nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv 2>&1
  nvcc --version | tail -n 2
  uname -srm
  git log -1 --format=%H 2>/dev/null
  date -u +%FT%TZ; } >"$out/machine.txt"
say "$(sed -n 2p "$out/machine.txt")"
printf '{"machine": "%s", "toolkit": "%s", "date": "%s"}\n' "$(sed -n 2p "$out/machine.txt")" \
  "$(nvcc --version | grep -o 'release [0-9.]*')" "$(date -u +%F)" >>"$out/bench.jsonl"
for part in "${parts[@]}"; do
  began=$SECONDS
  if ! declare -F "part_$part" >/dev/null; then say "there is no part $part" && exit 2; fi
  say "$part"
  status=0
  "part_$part" || status=$?
  case $status in
    0) verdict=ok ;;
    "$not_run") verdict="not run" ;;
    *) verdict=FAILED failed=1 ;;
  esac
  say "$part: $verdict, $((SECONDS - began)) s"
  [[ ! -s $out/bench.jsonl ]] || python3 benchmarks/gpu/table.py "$out/bench.jsonl" >"$out/table.txt"
  [[ $part != build || $verdict == ok ]] || exit 1
done
[[ ! -s $out/table.txt ]] || cat "$out/table.txt"
exit "$failed"
