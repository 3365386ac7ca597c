# shellcheck shell=bash disable=SC2034 # variables for other files
# TPU slices by Google's names. Sourced after common.sh.
#
#   v4-N, v5p-N, v7x-N (tpu7x-N)   N counts TensorCores, two a chip: v5p-8 is 4 chips
#   v5e-N (v5litepod-N), v6e-N     N counts chips
#   NAME:AxBxC or NAME:AxB         the same by its topology, in chips: v5p:4x4x12, v6e:4x8

# read_slice TYPE: sets generation, family (Google's name of it: v5litepod, tpu7x), size (the number in the slice's name),
# chips, topology, hosts and chips_per_host, or fails.
read_slice() {
  local type=$1 given=${1#*[-:]} cores dimensions largest
  case ${1%%[-:]*} in
    v4) generation=v4 family=v4 cores=2 dimensions=3 largest=2048 ;;
    v5e | v5litepod) generation=v5e family=v5litepod cores=1 dimensions=2 largest=256 ;;
    v5p) generation=v5p family=v5p cores=2 dimensions=3 largest=6144 ;;
    v6e) generation=v6e family=v6e cores=1 dimensions=2 largest=256 ;;
    v7x | tpu7x) generation=v7x family=tpu7x cores=2 dimensions=3 largest=9216 ;;
    *) fail "--type=$type: no such TPU generation; must be v4-, v5e-, v5p-, v6e- or v7x-SIZE, as v5p-32" ;;
  esac
  chips=0
  if [[ $type == *-* && $given =~ ^[1-9][0-9]{0,4}$ ]] && ((given % cores == 0)); then
    chips=$((given / cores))
  elif [[ $type == *:* && $given =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$ ]]; then
    chips=$((${given//x/*}))
  fi
  topology=$(topology_of "$dimensions" "$chips")
  if [[ $type == *:* ]] && is_cuboid "$dimensions" "$given"; then topology=$given; fi
  if [[ -z $topology || ($type == *:* && $topology != "$given") || ($topology == 1x1x1 && $generation != v7x) ]] ||
    ((chips > largest)); then
    no_such_slice "$type"
  fi
  size=$((chips * cores))
  # Four chips on a host. The flat generations have machines of one and of eight chips for slices of that size; so has v7x of one.
  chips_per_host=4
  if ((chips < 4)) || [[ $topology == 2x4 ]]; then chips_per_host=$chips; fi
  hosts=$((chips / chips_per_host))
}

no_such_slice() {
  local sizes="sizes count TensorCores, two a chip: 8, 16, 32, 64, then multiples of 128 to $((largest * 2))" other=4x4x8
  [[ $generation != v7x ]] || sizes=${sizes/chip: 8/chip: 2, 8}
  [[ $dimensions == 3 ]] || sizes='sizes count chips: 1, 4, 8, 16, 32, 64, 128, 256' other=4x8
  fail "--type=$1: no such TPU slice; $generation $sizes (or a topology, as in $generation:$other)"
}

# topology_of DIMENSIONS CHIPS: the arrangement behind a size, nothing where there is none. From 64 chips on it is built of
# cubes of 4x4x4, as near to a cube as can be.
topology_of() {
  local cubes=$(($2 / 64)) a b c longest=0 best=''
  case $1-$2 in
    2-1) echo 1x1 ;; 2-4) echo 2x2 ;; 2-8) echo 2x4 ;; 2-16) echo 4x4 ;;
    2-32) echo 4x8 ;; 2-64) echo 8x8 ;; 2-128) echo 8x16 ;; 2-256) echo 16x16 ;;
    3-1) echo 1x1x1 ;; 3-4) echo 2x2x1 ;; 3-8) echo 2x2x2 ;; 3-16) echo 2x2x4 ;; 3-32) echo 2x4x4 ;;
    2-*) ;;
    *)
      (($2 % 64 == 0)) || return 0
      for ((a = 1; a * a * a <= cubes; a++)); do
        for ((b = a; a * b * b <= cubes; b++)); do
          c=$((cubes / (a * b)))
          if ((a * b * c == cubes && c <= 64 && (longest == 0 || c <= longest))); then
            longest=$c best=$((4 * a))x$((4 * b))x$((4 * c))
          fi
        done
      done
      echo "$best"
      ;;
  esac
}

# is_cuboid DIMENSIONS TOPOLOGY: whether it is made of whole cubes of 4x4x4, its sides in rising order.
is_cuboid() {
  local a b c
  [[ $1 == 3 && $2 == *x*x* ]] || return
  IFS=x read -r a b c <<<"$2"
  ((a % 4 == 0 && b % 4 == 0 && c % 4 == 0 && a <= b && b <= c && c <= 256))
}
