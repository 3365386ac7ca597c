# shellcheck shell=bash disable=SC2034,SC2154 # variables of other files
# What the launch scripts share: their arguments, their messages, doing or only saying. Sourced, not run.

# The exit code of a command that saved its state on a signal to stop, and is to be run again: EX_TEMPFAIL.
readonly PREEMPTED=75
SCRIPT=$(basename "$0" .sh)

# fail MESSAGE: one line, and the exit code of wrong usage.
fail() {
  printf '%s: %s\n' "$SCRIPT" "$1" >&2
  exit 2
}

# The comment at the head of the script, without its marks.
show_help() { sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"; }

# help_or FIRST: for scripts that take a folder, or nothing: their help, or that an option is none of theirs.
help_or() {
  case $1 in
    --help) show_help && exit 0 ;;
    -*) fail "$1: no such option; see --help" ;;
  esac
}

# read_options "VALUES" "SWITCHES" ARGUMENT...: --some-name=X or --some-name X sets some_name, a switch sets it to yes, and
# what follows -- is `command`. A script gives its variables their defaults before.
read_options() {
  local values=" $1 " switches=" $2 dry-run " option # no name of an option
  shift 2
  command=()
  while (($#)); do
    option=${1%%=*} option=${option#--}
    case $1 in
      --help) show_help && exit 0 ;;
      --) shift && command=("$@") && return ;;
      --*) ;;
      *) fail "$1: not an option; the command to run comes after --" ;;
    esac
    if [[ $switches == *" $option "* && $1 != *=* ]]; then
      printf -v "${option//-/_}" yes
    elif [[ $values != *" $option "* ]]; then
      fail "$1: no such option; see --help"
    elif [[ $1 == *=* ]]; then
      printf -v "${option//-/_}" '%s' "${1#*=}"
    else
      (($# > 1)) || fail "$1: needs a value"
      printf -v "${option//-/_}" '%s' "$2" && shift
    fi
    shift
  done
}

# need NAME WHAT: the option was given, and is not empty.
need() {
  local variable=${1//-/_}
  [[ -n ${!variable:-} ]] || fail "--$1 is missing: $2"
}

need_command() { ((${#command[@]})) || fail 'the command is missing: -- python -m fv_jax.train ...'; }

# Google and Kubernetes take such names; 40 characters leave room for what they append.
need_name() {
  need name 'what the run is called'
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "--name=$name: must be 1 to 40 of a-z, 0-9 and -, begin with a letter and not end with -"
}

# need_count NAME [LEAST]: a whole number from LEAST (1) on.
need_count() {
  local variable=${1//-/_}
  if [[ ! ${!variable} =~ ^(0|[1-9][0-9]{0,5})$ ]] || ((${!variable} < ${2:-1})); then
    fail "--$1=${!variable}: must be a whole number from ${2:-1} on"
  fi
}

# quoted WORD...: the words as a shell would read them back.
quoted() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  printf '%s' "${line# }"
}

# act COMMAND...: says it and does it; with --dry-run says it only.
act() {
  if [[ -n ${dry_run:-} ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@"
  fi
}

# act_on TEXT COMMAND...: the same with TEXT on the command's standard input.
act_on() {
  local text=$1
  shift
  if [[ -n ${dry_run:-} ]]; then
    printf "%s <<'END'\n%s\nEND\n" "$(quoted "$@")" "$text"
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@" <<<"$text"
  fi
}
