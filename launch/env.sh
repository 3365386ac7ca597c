#!/usr/bin/env bash
# The XLA and libtpu flags of each kind of chip; they live nowhere else.
#   . launch/env.sh CHIP [SLICES]       exports them; CHIP is v4, v5e, v5p, v6e, v7x or gpu
#   bash launch/env.sh CHIP [SLICES]    says what that would export, each with its reason, and exports nothing
# What LIBTPU_INIT_ARGS (TPUs) and XLA_FLAGS (GPUs) hold already stays, and a flag in them wins over the one here. Flags that
# another generation hangs or dies with are refused: exit code 2 and one line. SLICES, by default $MEGASCALE_NUM_SLICES or 1, is
# the number of TPU slices of the run.
# The flags are the chip makers' advice; fv_jax was not timed with and without them. They cost memory: the 1080p step of stage 2
# over 8 v6e, compiled without a TPU, takes 8.6 GiB of a chip with them and 8.2 without.

# Chips, a flag (or an environment variable), its reason. `slices`: any TPU in a run of several slices.
_fv_table() {
  cat <<'TABLE'
v4,v5e,v5p,v6e,v7x --xla_tpu_enable_async_all_to_all=true  off by default; the exchange of heads for tokens runs beside compute
v4,v5e,v5p,v6e,v7x --xla_latency_hiding_scheduler_rerun=5  default 1; a schedule too large is tried again with less overlap
v4 --xla_enable_async_all_gather=true  by default from v5 on only; the next layer's weights arrive during this one
v4 --xla_enable_async_collective_permute=true  by default from v5 on only; ring attention passes K and V on while it multiplies
v5e --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true  off by default; gradients are summed beside the backward pass
v5p,v7x --xla_max_concurrent_async_all_gathers=4  the weights of several layers may be under way at once
v5p --xla_tpu_scoped_vmem_limit_kib=65472  default 16384; larger fusions, in the 64 MiB of on-chip memory of each core
v6e --xla_tpu_scoped_vmem_limit_kib=98304  default 16384; larger fusions, in three quarters of the 128 MiB of on-chip memory
v7x --xla_tpu_scoped_vmem_limit_kib=65536  default 16384; larger fusions, in the 64 MiB of on-chip memory of each core
v7x --xla_tpu_enable_sparse_core_collective_offload_all_gather=true  the SparseCores move weights while the TensorCores multiply
v7x --xla_tpu_enable_sparse_core_collective_offload_2d_all_gather=true  the same over two axes of the torus
v7x --xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=true  the same for gradients
v7x --xla_tpu_enable_sparse_core_reduce_scatter_v2=true  the form of the line above that the maker uses
v7x --xla_tpu_enable_sparse_core_collective_offload_all_reduce=true  the same for sums over chips
v7x --xla_tpu_enable_all_gather_offload_tracing=true  the maker sets it with the five above
v7x --xla_tpu_use_tc_device_shape_on_sc=true  arrays keep the TensorCores' layout on the SparseCores
slices --xla_tpu_enable_data_parallel_all_reduce_opt=true  sums between slices run beside the layers that follow
slices --xla_tpu_data_parallel_opt_different_sized_ops=true  also where the sums are of several sizes
gpu --xla_gpu_enable_latency_hiding_scheduler=true  off by default; collectives run beside compute
gpu --xla_gpu_enable_triton_gemm=false  cuBLAS for all matrix products, so none is tuned again at every start
gpu XLA_PYTHON_CLIENT_MEM_FRACTION=0.92  default 0.75; the rest of a card is left for CUDA, cuDNN and NCCL
TABLE
}

_fv_refuse() {
  printf 'env: %s\n' "$1" >&2
  return 2
}

# _fv_check_flags CHIP FLAG...: refuses the flags for libtpu that are of other chips.
_fv_check_flags() {
  local chip=$1 flag vmem
  case $chip in v4) vmem=16384 ;; v5p | v7x) vmem=65536 ;; *) vmem=131072 ;; esac # KiB on the chip for a core
  shift
  for flag in "$@"; do
    case $flag in
      --xla_gpu_*)
        _fv_refuse "LIBTPU_INIT_ARGS holds $flag; libtpu ends a program at flags of GPUs; take it out" || return
        ;;
      --xla_tpu_scoped_vmem_limit_kib=*)
        [[ ${flag#*=} =~ ^[1-9][0-9]{0,6}$ ]] && ((${flag#*=} <= vmem)) ||
          _fv_refuse "LIBTPU_INIT_ARGS holds $flag; $chip has $vmem; take it out" || return
        ;;
      *=false) ;; # harmless
      --xla_tpu_enable_sparse_core_* | --xla_sc_* | --xla_tpu_*_on_sc=* | --xla_tpu_enable_all_*_offload_tracing=*)
        # They hang a v5p of 2x2x2; v6e runs some of them, and is not given them here.
        [[ $chip == v6e || $chip == v7x ]] ||
          _fv_refuse "LIBTPU_INIT_ARGS holds $flag, which is for v6e and v7x, not $chip: SparseCore collectives \
hang a v5p; take it out" || return
        ;;
    esac
  done
}

# _fv_check CHIP: whether what the shell holds already can be joined with the flags of the chip.
_fv_check() {
  local chip=$1 words
  case $chip in
    v4 | v5e | v5p | v6e | v7x | gpu) ;;
    '') _fv_refuse 'the chip is missing: v4, v5e, v5p, v6e, v7x or gpu' || return ;;
    *) _fv_refuse "$chip: no such chip; must be v4, v5e, v5p, v6e, v7x or gpu" || return ;;
  esac
  if [[ -n ${FV_JAX_CHIP:-} && $FV_JAX_CHIP != "$chip" ]]; then
    _fv_refuse "this shell holds the flags of $FV_JAX_CHIP, not $chip; use a new one \
(or unset FV_JAX_CHIP LIBTPU_INIT_ARGS XLA_FLAGS)" || return
  fi
  case ${TPU_ACCELERATOR_TYPE:-}-$chip in
    -* | v4-*-v4 | v5lite*-v5e | v5e-*-v5e | v5p-*-v5p | v6e-*-v6e | tpu7x-*-v7x | v7x-*-v7x) ;;
    *) _fv_refuse "this machine is a $TPU_ACCELERATOR_TYPE (TPU_ACCELERATOR_TYPE), not $chip" || return ;;
  esac
  if [[ ${XLA_FLAGS:-} == *--xla_tpu_* || ${XLA_FLAGS:-} == *--xla_sc_* ]]; then
    _fv_refuse 'XLA_FLAGS holds flags of TPUs, which end a program there; put them into LIBTPU_INIT_ARGS' || return
  fi
  [[ $chip != gpu ]] || return 0
  if [[ ${LIBTPU_INIT_ARGS:-} == *\\* ]]; then
    _fv_refuse 'LIBTPU_INIT_ARGS holds a backslash, at which libtpu stops reading without a word; take it out' || return
  fi
  read -r -d '' -a words <<<"${LIBTPU_INIT_ARGS:-}" || true
  _fv_check_flags "$chip" ${words[@]+"${words[@]}"}
}

# _fv_rows CHIP SLICES: the rows of `_fv_table` for that run, without their first column.
_fv_rows() {
  local chips rest
  while read -r chips rest; do
    if [[ ,$chips, == *",$1,"* || ($chips == slices && $1 != gpu && $2 -gt 1) ]]; then printf '%s\n' "$rest"; fi
  done < <(_fv_table)
}

# _fv_env CHIP [SLICES]: exports the flags.
_fv_env() {
  local chip=${1:-} slices=${2:-${MEGASCALE_NUM_SLICES:-1}} item reason target=LIBTPU_INIT_ARGS name
  _fv_check "$chip" || return
  [[ $slices =~ ^[1-9][0-9]*$ ]] || _fv_refuse "$slices: the number of slices must be a whole number from 1" || return
  [[ $chip != gpu ]] || target=XLA_FLAGS
  while read -r item reason; do
    name=${item%%=*}
    if [[ $item != --* ]]; then
      [[ -n ${!name:-} ]] || export "$name=${item#*=}"
    elif [[ " ${!target:-} " != *" $name="* && " ${!target:-} " != *" $name "* ]]; then
      export "$target=${!target:+${!target} }$item"
    fi
  done < <(_fv_rows "$chip" "$slices")
  export FV_JAX_CHIP=$chip
}

# _fv_show CHIP [SLICES]: the reasons and the exports, as shell commands.
_fv_show() {
  local item reason
  case ${1:-} in --help) sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && return ;; esac
  _fv_env "$@" || return
  while read -r item reason; do printf '# %s\n#     %s\n' "$item" "$reason"; done \
    < <(_fv_rows "$1" "${2:-${MEGASCALE_NUM_SLICES:-1}}")
  for item in LIBTPU_INIT_ARGS XLA_FLAGS XLA_PYTHON_CLIENT_MEM_FRACTION FV_JAX_CHIP; do
    [[ -z ${!item:-} ]] || printf "export %s='%s'\n" "$item" "${!item}"
  done
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  _fv_show "$@"
else
  _fv_env "$@"
fi
