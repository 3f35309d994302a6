#!/usr/bin/env bash
# get-zk0bot.sh installs zk0d, which trains a shared robot policy on recordings that stay at home.
#
#   curl -fsSL URL/get-zk0bot.sh | bash -s -- --role client --invite 'zk0d-invite-1:…' --dataset /data/arm
#   wget -qO- URL/get-zk0bot.sh | bash -s -- --user --role client
#   bash get-zk0bot.sh --from ./zk0d-0.1.0 --dry-run
#
# Flags; each has a variable of the environment, which the flag overrides:
#   --role client|server|demo  ZK0D_ROLE     a contributor, a coordinator, or a demo on this machine alone;
#                                            without it zk0d is installed and nothing is set up
#   --invite TEXT              ZK0D_INVITE   client: the line of the coordinator's operator; - reads it
#                                            from the terminal
#   --dataset URI              ZK0D_DATASET  client: a folder, local:/folder, or user/name on the hub
#   --name NAME                ZK0D_NAME     client: this node's name (by default this machine's)
#   --contact TEXT             ZK0D_CONTACT  client: your mail address, for the operator
#   --host NAME                ZK0D_HOST     server: a name or address of this coordinator
#   --version X.Y.Z            ZK0D_VERSION  install this version instead of the script's own
#   --from SOURCE              ZK0D_FROM     a checkout, a version's folder, the wheel in one, or the URL of
#                                            a folder ({version} in it is replaced)
#   --key FILE                 ZK0D_KEY      public ssh key that the version must be signed with
#   --unsigned                 ZK0D_UNSIGNED=1   accept a version without a signature from a URL; checksums
#                                            are still checked
#   --torch BACKEND            ZK0D_TORCH    pypi, cpu, cu126, cu128 or cu130; chosen by the GPU's driver
#   --prefix DIR               ZK0D_PREFIX   folder of the versions (/opt/zk0d; ~/.local/share/zk0d); another
#                                            folder gets no units: services run in the foreground
#   --user                     ZK0D_USER=1   for this user alone, without root
#   --no-start                 ZK0D_NO_START=1   set up, start nothing
#   --dry-run                  ZK0D_DRY_RUN=1    show the steps; change nothing
#   --yes                      ZK0D_YES=1    ask nothing
#   --rollback                               use the version before this one
#   --uninstall [--purge]                    remove zk0d; --purge also settings, keys and data
#
# Only in the environment: ZK0D_BIN, the folder for links to zk0bot (/usr/local/bin; ~/.local/bin); ZK0D_CACHE, the
# folder for downloads (/var/cache/zk0d-install; ~/.cache/zk0d-install); ZK0D_LOG, the log, without
# invites and keys (/var/log/zk0d-install.log; ~/.local/state/zk0d-install.log). UV_DEFAULT_INDEX and uv's other
# variables choose the index of Python's packages.
#
# Without a terminal it asks nothing and does only the steps that options name; its end lists the others.
# It installs no driver, changes no setting of the system, and never reboots.
#
# Exit codes, one for each end; docs/cli.md lists them. The next free ones: 17, 35, 59, 93.
#   0 done or nothing to do · 10-19 this machine · 20-39 the command line · 40-59 the version
#   80-99 the installation · 70 a bug of this script · 130 interrupted
set -euo pipefail
# A shell of ROS sets PYTHONPATH; what that names must not come before the packages that are installed here.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1

# make release fills these in.
readonly STAMPED_VERSION=""
readonly STAMPED_URL=""
readonly STAMPED_KEY=""

readonly NEEDED_MIB=7000
readonly WHEELS_MIB=3500          # of a wheelhouse that is fetched
readonly NAMESPACE="zk0d-release" # what a signature is for, as ssh-keygen has it

# --- messages -------------------------------------------------------------------------------------

LOG=""
WARNINGS=()

# A password in an address is nobody's business.
redact() {
  if [[ "$1" == *://*@* ]]; then sed -E 's#://[^/@ ]*@#://#g' <<<"$1"; else printf '%s\n' "$1"; fi
}
note() { if [ -n "$LOG" ]; then printf '%(%FT%T%z)T %s\n' -1 "$(redact "$*")" >>"$LOG"; fi; }
say() {
  redact "$*" >&2
  note "$*"
}
step() { say "==> $*"; }
# Said now, and again at the end, where it is seen.
warn() {
  say "note: $*"
  WARNINGS+=("$*")
}
die() {
  local code="$1"
  shift
  say "get-zk0bot: $* (code $code)"
  [ -z "$LOG" ] || printf 'The log is %s\n' "$LOG" >&2
  ENDED=yes
  exit "$code"
}
bug() {
  local status="$1" line="$2" command="$3"
  [ "$ENDED" = no ] || exit "$status"
  die 70 "a bug of this script, please report it: line $line, status $status: $command"
}

# --- what is done ---------------------------------------------------------------------------------

# All that changes something goes through run; a dry run has another executor.
perform() {
  note "+ $(hide "$@")"
  # A terminal shows progress; elsewhere what programs say is kept, too.
  if [ -t 2 ] || [ -z "$LOG" ]; then "$@"; else "$@" 2> >(tee -a "$LOG" >&2); fi
}
pretend() { redact "would run: $(hide "$@")" >&2; }
run() { "$EXECUTOR" "$@"; }
# An invite is for one person: it is neither shown nor logged.
hide() {
  local text
  printf -v text '%q ' "$@"
  if [ -n "$INVITE" ]; then text="${text//"$(printf '%q' "$INVITE")"/INVITE}"; fi
  printf '%s' "${text% }"
}
dry() { [ "$EXECUTOR" = pretend ]; }
is_root() { [ "$(id -u)" = 0 ]; }
has() { command -v "$1" >/dev/null 2>&1; }
terminal() { [ "$YES" != 1 ] && { : </dev/tty >/dev/tty; } 2>/dev/null; }
ask() {
  local answer=""
  printf '%s ' "$1" >/dev/tty
  IFS= read -r answer </dev/tty || answer=""
  printf '%s' "$answer"
}

# --- this machine ---------------------------------------------------------------------------------

look_at_machine() {
  [ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -ge 44 ] || die 10 "this is bash $BASH_VERSION; 4.4 or newer is needed."
  [ "$(uname -s)" = Linux ] || die 11 "this is $(uname -s); zk0d runs on Linux. On Windows use WSL2."
  ARCHITECTURE="$(uname -m)"
  case "$ARCHITECTURE" in
    x86_64 | aarch64) ;;
    arm64) ARCHITECTURE=aarch64 ;;
    *) die 12 "the processor is $ARCHITECTURE; PyTorch has packages only for x86_64 and aarch64." ;;
  esac
  # shellcheck source=/dev/null
  DISTRIBUTION="$(. /etc/os-release >/dev/null 2>&1 && printf '%s %s' "${ID:-linux}" "${VERSION_ID:-}" || printf 'unknown')"
  if [ "${DISTRIBUTION%% *}" = alpine ] || compgen -G '/lib/ld-musl-*' >/dev/null && ! compgen -G '/lib*/ld-linux-*' >/dev/null; then
    die 13 "this is $DISTRIBUTION with musl; PyTorch has packages only for glibc (Debian, Ubuntu, Fedora and others)."
  fi
  case "$DISTRIBUTION" in
    'debian 12' | 'debian 13' | 'ubuntu 24.04') ;;
    *) warn "zk0d is tested on Debian 12 and 13 and Ubuntu 24.04; this is $DISTRIBUTION." ;;
  esac
  local kernel
  kernel="$(cat /proc/version 2>/dev/null || true)"
  WSL=no CONTAINER=no
  case "$kernel" in *[Mm]icrosoft*) WSL=yes ;; esac
  if [ -e /run/.containerenv ] || [ -e /.dockerenv ] || { has systemd-detect-virt && systemd-detect-virt --container --quiet; }; then
    CONTAINER=yes
  fi
  if is_root; then
    if has systemctl && [ -d /run/systemd/system ]; then SYSTEMD=system; else SYSTEMD=no; fi
  elif has systemctl && systemctl --user show-environment >/dev/null 2>&1; then
    SYSTEMD=user
  else
    SYSTEMD=no
  fi
  [ "$WSL$SYSTEMD" != yesno ] ||
    warn "WSL runs no systemd here: put [boot] systemd=true into /etc/wsl.conf and run wsl --shutdown, or run the services in the foreground."
}

# nvidia-smi answers where a driver works; lspci and the kernel tell whether there is a GPU without one.
look_at_gpu() {
  local said="" driver
  GPU=none BACKEND=cpu
  if [ "$WSL" = yes ]; then PATH="$PATH:/usr/lib/wsl/lib"; fi
  if [ -e /etc/nv_tegra_release ]; then
    GPU=Jetson
    warn "a Jetson needs NVIDIA's own PyTorch, which this script does not know; $(processor_advice)"
    return
  fi
  if has nvidia-smi; then
    said="$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1 || true)"
  fi
  if [[ "$said" == *"version mismatch"* ]]; then
    GPU="NVIDIA, to be used after a reboot"
    # The driver that the next boot brings.
    driver="$(sed -n 's/.*library version: *\([0-9.]*\).*/\1/p' <<<"$said" | head -n1)"
    choose_backend "${driver:-580}" || true
    warn "NVIDIA's driver was upgraded and this machine still runs the old one: reboot it. Until then nothing is trained here."
    return
  fi
  said="$(grep -m1 -E ', [0-9]+\.' <<<"$said" || true)"
  if [ -n "$said" ]; then
    GPU="${said%,*}"
    driver="${said##*, }"
    if choose_backend "$driver"; then
      GPU="$GPU, driver $driver"
    else
      warn "the driver $driver of the $GPU is too old for PyTorch; $(driver_advice) $(processor_advice)"
      GPU="$GPU with an old driver"
    fi
  elif has_nvidia_card; then
    GPU="NVIDIA without a driver"
    warn "there is an NVIDIA GPU but no driver that works: a reboot may be due; if not, $(driver_advice) $(processor_advice)"
  fi
}

has_nvidia_card() {
  # A container sees its host's.
  if [ "$CONTAINER" = no ] && cat /proc/driver/nvidia/version >/dev/null 2>&1; then return 0; fi
  has lspci || return 1
  lspci -d 10de: 2>/dev/null | grep -qE 'VGA|3D|Display'
}

# The oldest drivers that run programs of CUDA 13, 12.8 and 12.6.
choose_backend() {
  local major="${1%%.*}"
  [[ "$major" =~ ^[0-9]+$ ]] || return 1
  if [ "$major" -ge 580 ]; then
    BACKEND=pypi
    if [ "$ARCHITECTURE" = aarch64 ]; then BACKEND=cu130; fi
  elif [ "$major" -ge 570 ] && [ "$ARCHITECTURE" = x86_64 ]; then
    BACKEND=cu128
  elif [ "$major" -ge 525 ] && [ "$ARCHITECTURE" = x86_64 ]; then
    BACKEND=cu126
  else
    return 1
  fi
}

processor_advice() {
  printf 'To train on the processor, which takes longer, write device = "cpu" under [learner] in client.toml.'
}

driver_advice() {
  if [ "$WSL" = yes ]; then
    printf 'install the driver on Windows, not in WSL, and then run this again.'
  else
    printf 'this script installs no driver; ansible-playbook site.yml --tags nvidia_driver of this project (docs/fleet.md) does, or your distribution: then run this again.'
  fi
}

check_tools() {
  local tool missing=()
  for tool in sha256sum awk tar flock df mktemp sort; do has "$tool" || missing+=("$tool"); done
  [ "${#missing[@]}" = 0 ] || die 14 "missing here: ${missing[*]}; install coreutils, util-linux, gawk and tar."
}

check_space() {
  local where="$1" needed="$2" free
  while [ ! -e "$where" ]; do where="$(dirname "$where")"; done
  free="$(df --output=avail -m "$where" | tail -n1 | tr -d ' ')"
  [ "$free" -ge "$needed" ] ||
    die 15 "$where: $free MiB are free and $needed are needed; make space, or name another place with --prefix (downloads: ZK0D_CACHE)."
}

check_rights() {
  local where="$PREFIX"
  while [ ! -e "$where" ]; do where="$(dirname "$where")"; done
  [ -w "$where" ] || die 16 "$where cannot be written by $(id -un): run this with sudo, or with --user for this user alone."
}

# --- where a version comes from -------------------------------------------------------------------

is_checkout() { [ -f "$1/pyproject.toml" ] && [ -x "$1/.ci/make-release" ]; }
is_release() { [ -f "$1/SHA256SUMS" ] || compgen -G "$1/zk0d-*-py3-none-any.whl" >/dev/null; }

# Sets KIND to url, folder or checkout, and FROM to where that is.
find_source() {
  local own
  if [ -z "$FROM" ]; then
    own="${BASH_SOURCE[0]:-}"
    if [ -f "$own" ]; then own="$(dirname "$own")"; else own=""; fi
    if [ -n "$own" ] && { is_release "$own" || is_checkout "$own"; }; then
      FROM="$own"
    elif [ -n "$STAMPED_URL" ]; then
      FROM="$STAMPED_URL"
    else
      die 40 "this script was not made for one version: name a checkout, a folder or a URL with --from."
    fi
  fi
  case "$FROM" in
    https://*) KIND=url ;;
    http://127.0.0.1[:/]* | http://localhost[:/]* | http://\[::1\][:/]*) KIND=url ;;
    http://*)
      KIND=url
      [ -n "$KEY" ] || die 41 "$FROM: without https others on the network can change it; use https, or name the version's key with --key."
      ;;
    *.whl)
      [ -f "$FROM" ] || die 42 "--from $FROM: there is no such file."
      VERSION="$(basename "$FROM")"
      VERSION="${VERSION#zk0d-}"
      VERSION="${VERSION%-py3-none-any.whl}"
      KIND=folder FROM="$(cd "$(dirname "$FROM")" && pwd)"
      ;;
    *)
      [ -d "$FROM" ] || die 43 "--from $FROM: there is no such folder."
      FROM="$(cd "$FROM" && pwd)"
      if is_release "$FROM"; then
        KIND=folder
      elif is_checkout "$FROM"; then
        KIND=checkout
      else
        die 44 "--from $FROM: is neither a checkout of zk0d nor a version's folder."
      fi
      ;;
  esac
  if [ "$KIND" = url ]; then
    FROM="${FROM%/}"
    if [[ "$FROM" == *'{version}'* ]]; then
      VERSION="${VERSION:-$STAMPED_VERSION}"
      [ -n "$VERSION" ] || die 45 "$FROM: no version is given; add --version X.Y.Z."
      FROM="${FROM//'{version}'/$VERSION}"
    fi
    has curl || has wget || die 46 "curl and wget are missing: install one, or name a local folder with --from."
  fi
}

# One file; what is there of it already is not fetched again. A fourth try would not help.
fetch() {
  local name="$1" target="$2" attempt
  for attempt in 1 2 3; do
    if fetch_once "$FROM/$name" "$target"; then return 0; fi
    [ "$attempt" = 3 ] || sleep "$attempt"
  done
  return 1
}
fetch_once() {
  local quiet=() proto='=http,https'
  if has curl; then
    if [ ! -t 2 ]; then quiet=(--silent --show-error); else quiet=(--progress-bar); fi
    # Nothing that began with https goes on without it.
    if [[ "$1" == https:* ]]; then proto='=https'; fi
    curl --fail --location --proto "$proto" --connect-timeout 20 --speed-limit 1000 --speed-time 60 \
      "${quiet[@]}" --continue-at - --output "$2" "$1" || {
      # The server cannot resume, or there is nothing left to resume: then from the beginning.
      case "$?" in 22 | 33 | 36) rm -f "$2" ;; esac
      return 1
    }
  else
    if [ ! -t 2 ]; then quiet=(--no-verbose); else quiet=(--quiet --show-progress); fi
    wget "${quiet[@]}" --tries 1 --timeout 60 --continue --output-document "$2" "$1"
  fi
}

sum_of() { awk -v name="$1" 'substr($0, 67) == name { print substr($0, 1, 64) }' "$SUMS"; }
is_right() { [ -f "$2" ] && [ "$(sha256sum "$2" | cut -c1-64)" = "$(sum_of "$1")" ]; }

# The list of checksums, which is signed, comes first: all else is judged by it.
check_list() {
  local folder="$1"
  SUMS="$folder/SHA256SUMS"
  [ -s "$SUMS" ] || die 47 "$FROM/SHA256SUMS: is missing; nothing is installed without it."
  if [ -z "$KEY" ]; then
    if [ "$KIND" = url ] && [ "$UNSIGNED" != 1 ]; then
      die 48 "this script has no key that $FROM could be signed with: name it with --key FILE, or say --unsigned."
    fi
    [ "$KIND" = checkout ] || warn "the version is not signed, or by no key that is known here; its checksums were checked."
    return
  fi
  if [ ! -s "$SUMS.sig" ]; then
    [ "$UNSIGNED" = 1 ] || die 49 "$FROM/SHA256SUMS.sig: is missing; a version is signed. --unsigned installs it without a signature."
    warn "the version is not signed; its checksums were checked."
    return
  fi
  has ssh-keygen || die 50 "ssh-keygen, which checks the signature, is missing: install openssh-client."
  ssh-keygen -q -Y verify -f <(printf 'release %s\n' "$KEY") -I release -n "$NAMESPACE" -s "$SUMS.sig" \
    <"$SUMS" >/dev/null 2>&1 ||
    die 51 "$FROM/SHA256SUMS: its signature is not by the version's key; do not use it. Nothing was installed."
}

read_version() {
  local found
  found="$(sed -n 's/^.\{66\}zk0d-\([0-9][0-9A-Za-z.+]*\)-py3-none-any\.whl$/\1/p' "$SUMS")"
  [[ -n "$found" && "$(wc -l <<<"$found")" = 1 ]] ||
    die 52 "$FROM/SHA256SUMS: names no wheel of zk0d, or more than one; this is not a version."
  if [ -n "$VERSION" ] && [ "$VERSION" != "$found" ]; then
    die 53 "$FROM: is version $found, not $VERSION; say --version $found, or name another place."
  fi
  VERSION="$found"
}

# What is installed from: of what the list names, all but the source and this script.
needed_files() { sed -n 's/^.\{66\}//p' "$SUMS" | grep -E '^(zk0d-[^/]*\.whl|constraints\.txt|zk0d-release|uv|wheelhouse/[^/]+)$'; }

wrong_file() { die 54 "$FROM/$1: is not what SHA256SUMS says; do not use it. Nothing was installed."; }

# Sets RELEASE, the folder that is installed from, with every file checked.
get_release() {
  local name
  case "$KIND" in
    folder) RELEASE="$FROM" ;;
    checkout)
      step "building a version of $FROM"
      RELEASE="$STAGE/checkout"
      run "$FROM/.ci/make-release" "$RELEASE" >/dev/null || die 55 "the checkout $FROM could not be built, see the lines above."
      if dry; then return; fi
      ;;
    url)
      RELEASE="$STAGE/$(printf '%s' "$FROM" | sha256sum | cut -c1-12)"
      step "fetching ${VERSION:+$VERSION }from $FROM"
      if dry; then
        run fetch SHA256SUMS "$RELEASE/SHA256SUMS"
        return
      fi
      mkdir -p "$RELEASE/wheelhouse"
      # Lists are never resumed: an older one would be kept.
      rm -f "$RELEASE"/SHA256SUMS*
      fetch SHA256SUMS "$RELEASE/SHA256SUMS" || die 56 "$FROM/SHA256SUMS: could not be fetched; check the address and the network."
      [ -z "$KEY" ] || fetch SHA256SUMS.sig "$RELEASE/SHA256SUMS.sig" 2>/dev/null || rm -f "$RELEASE/SHA256SUMS.sig"
      ;;
  esac
  check_list "$RELEASE"
  read_version
  for name in "zk0d-$VERSION-py3-none-any.whl" constraints.txt zk0d-release; do
    [ -n "$(sum_of "$name")" ] || die 57 "$FROM/SHA256SUMS: has no line for $name; nothing was installed."
  done
  if is_installed; then return; fi
  # Before gigabytes come, not after.
  check_space "$PREFIX" "$NEEDED_MIB"
  if [ "$KIND" = url ] && needed_files | grep -q '^wheelhouse/'; then check_space "$STAGE" "$WHEELS_MIB"; fi
  while IFS= read -r name; do
    if is_right "$name" "$RELEASE/$name"; then continue; fi
    [ "$KIND" = url ] || wrong_file "$name"
    fetch_file "$name"
  done < <(needed_files)
  rmdir --ignore-fail-on-non-empty "$RELEASE/wheelhouse" 2>/dev/null || true
  if [ "$KIND" = url ]; then
    for name in zk0d-release uv; do [ ! -f "$RELEASE/$name" ] || chmod 0755 "$RELEASE/$name"; done
  fi
}

# A part that was left from before may be of another file, so one that is wrong is fetched anew, once.
fetch_file() {
  local name="$1" part="$RELEASE/$1.part" attempt
  for attempt in 1 2; do
    fetch "$name" "$part" || die 58 "$FROM/$name: could not be fetched; run this again: it resumes the download."
    if is_right "$name" "$part"; then
      mv "$part" "$RELEASE/$name"
      return
    fi
    rm -f "$part"
  done
  wrong_file "$name"
}

# The marker that zk0d-release writes last: sums of wheel and constraints, and PyTorch's backend.
marker() { cat "$PREFIX/$VERSION/.zk0d-complete" 2>/dev/null || true; }
is_installed() {
  local there
  [ -n "$SUMS" ] || return 1
  there="$(marker)"
  [ -n "$there" ] && [ "${there% *}" = "$(sum_of "zk0d-$VERSION-py3-none-any.whl") $(sum_of constraints.txt)" ]
}
in_use() { basename "$(readlink "$PREFIX/current" 2>/dev/null || true)"; }

# --- install --------------------------------------------------------------------------------------

find_program() {
  local program
  for program in "$PREFIX/current/bin/zk0d-release" "$PREFIX"/[0-9]*/bin/zk0d-release; do
    if [ -x "$program" ]; then
      printf '%s\n' "$program"
      return
    fi
  done
  return 1
}

# What the processor and the GPU's driver ask for; a wheelhouse or a mirror has what the usual index has.
choose_torch() {
  local there
  if is_installed; then
    there="$(marker)"
    there="${there##* }"
    if [ -z "$TORCH" ] && [ "$there" = cpu ] && [ "$BACKEND" != cpu ]; then
      warn "zk0d was installed for the processor and this machine has a GPU now: run this with --uninstall (settings and keys stay), then again."
    fi
    TORCH="${TORCH:-$there}"
  fi
  if [ -z "$TORCH" ] && { [ -d "$RELEASE/wheelhouse" ] || [ -n "${UV_DEFAULT_INDEX:-}${UV_OFFLINE:-}" ]; }; then TORCH=pypi; fi
  TORCH="${TORCH:-$BACKEND}"
}

do_install() {
  local program="$RELEASE/zk0d-release" options=()
  choose_torch
  if is_installed; then
    [ "$(in_use)" != "$VERSION" ] || step "$VERSION is installed: nothing to do"
    program="$PREFIX/$VERSION/bin/zk0d-release"
    [ -x "$program" ] || program="$RELEASE/zk0d-release"
  else
    check_space "$PREFIX" "$NEEDED_MIB"
    step "installing ${VERSION:-it} into $PREFIX (PyTorch: $TORCH)"
    run "$program" install "$RELEASE" --torch "$TORCH" ||
      die 80 "zk0d ${VERSION:-} could not be installed, see the lines above; the old version still runs. Run this again: it resumes."
  fi
  if [ "$NO_START" = 1 ]; then options=(--no-start); fi
  run "$program" switch "${VERSION:-VERSION}" "${options[@]}" ||
    die 81 "zk0d ${VERSION:-} is installed but not in use, see the lines above."
}

bot() { run "$PREFIX/current/bin/zk0bot" "$@"; }
with_folder() { if [ -n "$SETTINGS" ]; then printf '%s\n' --folder "$SETTINGS"; fi; }

set_up_client() {
  local arguments=() folder=() request
  mapfile -t folder < <(with_folder)
  if [ -f "${SETTINGS:-/etc/zk0d}/client.toml" ]; then
    say "this node's settings exist and are kept"
  else
    if [ -z "$INVITE" ] && terminal; then
      INVITE="$(ask 'The invite of the coordinator (empty: later):')"
    fi
    if [ -z "$INVITE" ]; then
      NEXT="zk0bot client join INVITE, with the line of your coordinator"
      return
    fi
    if [ -z "$DATASET" ] && terminal; then
      DATASET="$(ask 'Recordings to train on, a folder or user/name on the hub (empty: later):')"
    fi
    arguments=(client join - "${folder[@]}")
    if [ -n "$DATASET" ]; then arguments+=(--dataset "$DATASET"); fi
    if [ -n "$NAME" ]; then arguments+=(--name "$NAME"); fi
    if [ -n "$CONTACT" ]; then arguments+=(--contact "$CONTACT"); fi
    step "making this node's settings and key"
    request="$(bot "${arguments[@]}" <<<"$INVITE")" ||
      die 82 "this node could not be set up, see the line above; zk0d itself is installed."
    if ! dry; then printf '\n%s\n\n' "$request"; fi
    NEXT="send the lines above to the coordinator's operator (zk0bot node request shows them again)"
  fi
  start_client "${folder[@]}"
}

start_client() {
  local start="zk0bot client start"
  if [ "$NO_START" = 1 ]; then
    NEXT="${NEXT:+$NEXT; then }$start"
    return
  fi
  if ! dry && ! grep -Eq '^ *(dataset-uri|\[\[dataset\]\])' "${SETTINGS:-/etc/zk0d}/client.toml" && [ -z "$DATASET" ]; then
    NEXT="${NEXT:+$NEXT; then }$start FOLDER, with your recordings"
    return
  fi
  case "$SYSTEMD" in
    system)
      # Without another dataset, a start of what runs changes nothing.
      local dataset=()
      if [ -n "$DATASET" ]; then dataset=("$DATASET"); fi
      bot client start "${dataset[@]}" || die 83 "the services were not started, see the line above; zk0bot doctor says more."
      RUNS="zk0d-client.target"
      ;;
    user)
      run systemctl --user enable --quiet --now --no-block zk0d-client.service ||
        die 84 "the service was not started, see the line above; systemctl --user status zk0d-client says more."
      RUNS="zk0d-client.service of this user"
      if ! dry && [ "$(loginctl show-user "$(id -un)" --property=Linger --value 2>/dev/null || true)" != yes ]; then
        warn "it ends when you log out; sudo loginctl enable-linger $(id -un) has it run from boot on."
      fi
      ;;
    no) NEXT="${NEXT:+$NEXT; then }$start, which runs in the foreground until Ctrl-C" ;;
  esac
  NEXT="${NEXT:-zk0bot status}"
}

set_up_server() {
  if [ -f /etc/zk0d/server.toml ]; then
    say "this coordinator's settings exist and are kept"
  elif [ -z "$HOST" ]; then
    NEXT="zk0bot server init --host NAME, with a name or address that nodes reach this machine by"
    return
  else
    step "making this coordinator's certificates and settings"
    bot server init --host "$HOST" >/dev/null || die 85 "the coordinator could not be set up, see the line above; zk0d itself is installed."
  fi
  if ! has nginx && [ ! -x /usr/sbin/nginx ]; then
    NEXT="install nginx (apt-get install nginx-light), the gateway; then zk0bot server start"
  elif [ "$NO_START" = 1 ] || [ "$SYSTEMD" != system ]; then
    NEXT="zk0bot server start"
  else
    bot server start || die 86 "the services were not started, see the line above; zk0bot doctor says more."
    RUNS="zk0d-server.target"
    NEXT="zk0bot server invite, for those who may join"
  fi
}

run_demo() {
  if [ "$NO_START" = 1 ]; then
    NEXT="zk0bot demo"
    return
  fi
  bot demo || die 87 "the demo failed, see the lines above."
  NEXT="zk0bot demo --help"
}

finish() {
  local warning
  dry || rm -rf "$STAGE"
  say ""
  if dry; then
    say "This was a dry run: nothing was changed."
  else
    say "zk0d $VERSION is in $PREFIX/current. Runs: ${RUNS:-nothing yet}."
    case ":$PATH:" in
      *":$BIN:"*) ;;
      *) WARNINGS+=("$BIN is not on your PATH: log in again, or call $BIN/zk0bot.") ;;
    esac
  fi
  for warning in "${WARNINGS[@]}"; do say "note: $warning"; done
  [ -z "$NEXT" ] || say "Next: $NEXT"
}

# --- back, and away -------------------------------------------------------------------------------

do_rollback() {
  local program
  program="$(find_program)" || die 88 "zk0d is not installed in $PREFIX, so it cannot go back."
  run "$program" rollback || die 89 "it could not go back, see the line above."
}

do_uninstall() {
  local program options=() answer
  if [ "$PURGE" = 1 ]; then
    if terminal; then
      answer="$(ask 'Settings, keys and data of zk0d go, too. Type yes:')"
      [ "$answer" = yes ] || die 90 "nothing was removed."
    elif [ "$YES" != 1 ] && ! dry; then
      die 91 "--purge removes keys and data: add --yes if there is no terminal."
    fi
    options=(--purge)
  fi
  if program="$(find_program)"; then
    # A copy: the program removes the folder that it lies in.
    local copy="$program"
    if ! dry; then
      copy="$(mktemp)"
      cp "$program" "$copy"
    fi
    run bash "$copy" uninstall "${options[@]}" || die 92 "zk0d could not be removed, see the line above."
    if ! dry; then rm -f "$copy"; fi
  elif [ -d "$PREFIX" ]; then
    run rm -rf "$PREFIX" # an installation that was never finished
  else
    say "zk0d is not installed in $PREFIX: nothing to do"
  fi
  LOG=""
  run rm -rf "$STAGE"
  run rm -f "$(log_path)"
  if ! is_root && ! dry; then
    rmdir --ignore-fail-on-non-empty "$BIN" "$(dirname "$PREFIX")" "$(dirname "$(log_path)")" "$HOME/.local" \
      "$(dirname "$STAGE")" 2>/dev/null || true
  fi
}

# --- the command line -----------------------------------------------------------------------------

read_command_line() {
  ROLE="${ZK0D_ROLE:-}" INVITE="${ZK0D_INVITE:-}" DATASET="${ZK0D_DATASET:-}" NAME="${ZK0D_NAME:-}"
  CONTACT="${ZK0D_CONTACT:-}" HOST="${ZK0D_HOST:-}" VERSION="${ZK0D_VERSION:-}" FROM="${ZK0D_FROM:-}"
  KEYFILE="${ZK0D_KEY:-}" UNSIGNED="${ZK0D_UNSIGNED:-}" TORCH="${ZK0D_TORCH:-}" PREFIX="${ZK0D_PREFIX:-}"
  USER_MODE="${ZK0D_USER:-}" NO_START="${ZK0D_NO_START:-}" DRY_RUN="${ZK0D_DRY_RUN:-}" YES="${ZK0D_YES:-}"
  PURGE="" ACTION=install
  while [ "$#" -gt 0 ]; do
    case "$1" in
      --*=*)
        local whole="$1"
        shift
        set -- "${whole%%=*}" "${whole#*=}" "$@"
        continue
        ;;
      --role | --invite | --dataset | --name | --contact | --host | --version | --from | --key | --torch | --prefix)
        [ "$#" -ge 2 ] || die 20 "$1 needs a value; --help says which."
        case "$1" in
          --role) ROLE="$2" ;;
          --invite) INVITE="$2" ;;
          --dataset) DATASET="$2" ;;
          --name) NAME="$2" ;;
          --contact) CONTACT="$2" ;;
          --host) HOST="$2" ;;
          --version) VERSION="$2" ;;
          --from) FROM="$2" ;;
          --key) KEYFILE="$2" ;;
          --torch) TORCH="$2" ;;
          --prefix) PREFIX="$2" ;;
        esac
        shift
        ;;
      --unsigned) UNSIGNED=1 ;;
      --user) USER_MODE=1 ;;
      --no-start) NO_START=1 ;;
      --dry-run) DRY_RUN=1 ;;
      --yes | -y) YES=1 ;;
      --purge) PURGE=1 ;;
      --uninstall) ACTION=uninstall ;;
      --rollback) ACTION=rollback ;;
      --help | -h)
        usage
        exit 0
        ;;
      *) die 21 "unknown option '$1'; --help shows all." ;;
    esac
    shift
  done
  check_command_line
}

check_command_line() {
  case "$ROLE" in
    "" | client | server | demo) ;;
    *) die 22 "--role $ROLE: use client, server or demo." ;;
  esac
  case "$TORCH" in
    "" | pypi | cpu | cu126 | cu128 | cu130) ;;
    *) die 23 "--torch $TORCH: use pypi, cpu, cu126, cu128 or cu130." ;;
  esac
  [[ "$VERSION" =~ ^([0-9][0-9A-Za-z.+]*)?$ ]] || die 24 "--version $VERSION: is not a version; write X.Y.Z."
  if [ -z "$ROLE" ] && [ -n "$INVITE$DATASET" ]; then ROLE=client; fi
  if [ "$ROLE" != client ] && [ -n "$INVITE" ]; then die 25 "--invite is for a contributor, and --role says $ROLE."; fi
  [ -z "$PURGE" ] || [ "$ACTION" = uninstall ] || die 26 "--purge belongs to --uninstall."
  if [ "$USER_MODE" != 1 ] && ! is_root; then die 27 "you are not root: run this with sudo, or with --user for this user alone."; fi
  if [ "$USER_MODE" = 1 ] && is_root; then die 28 "--user is not for root; run it as another user."; fi
  if [ "$ROLE" = server ] && ! is_root; then die 29 "a coordinator has a gateway and users of its own: run this as root."; fi
  KEY="$STAMPED_KEY"
  if [ -n "$KEYFILE" ]; then
    [ -r "$KEYFILE" ] || die 30 "--key $KEYFILE: there is no such file."
    KEY="$(cut -d' ' -f1,2 "$KEYFILE" | head -n1)"
  fi
  if [ "$INVITE" = - ]; then
    terminal || die 31 "--invite -: there is no terminal to read it from."
    INVITE="$(ask 'The invite of the coordinator:')"
  fi
}

usage() {
  if [ -f "${BASH_SOURCE[0]:-}" ]; then
    sed -n '2,/^set -euo/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p'
  else
    printf 'The first lines of the script explain its use.\n'
  fi
}

log_path() {
  if [ -n "${ZK0D_LOG:-}" ]; then
    printf '%s' "$ZK0D_LOG"
  elif is_root; then
    printf '/var/log/zk0d-install.log'
  else
    printf '%s/zk0d-install.log' "${XDG_STATE_HOME:-$HOME/.local/state}"
  fi
}

# Where things go, and one installer at a time.
prepare() {
  if is_root; then
    PREFIX="${PREFIX:-/opt/zk0d}" STAGE="${ZK0D_CACHE:-/var/cache/zk0d-install}" BIN="${ZK0D_BIN:-/usr/local/bin}" SETTINGS=""
  else
    PREFIX="${PREFIX:-$HOME/.local/share/zk0d}" STAGE="${ZK0D_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/zk0d-install}"
    BIN="${ZK0D_BIN:-$HOME/.local/bin}" SETTINGS="${XDG_CONFIG_HOME:-$HOME/.config}/zk0d"
  fi
  [[ "$PREFIX" == /* ]] || PREFIX="$PWD/$PREFIX"
  if is_root && [ "$PREFIX" != /opt/zk0d ] && [[ "$ROLE" =~ ^(client|server)$ ]]; then
    die 32 "--prefix $PREFIX: the units of a $ROLE are for /opt/zk0d; leave --prefix out, or run this without root, with --user."
  fi
  if [ "$PREFIX" != /opt/zk0d ] && [ "$PREFIX" != "$HOME/.local/share/zk0d" ]; then SYSTEMD=no; fi
  export ZK0D_PREFIX="$PREFIX" ZK0D_BIN="$BIN"
  check_rights
  if dry; then return; fi
  umask 022
  mkdir -p "$STAGE" "$(dirname "$(log_path)")"
  chmod 0700 "$STAGE"
  LOG="$(log_path)"
  (umask 077 && : >>"$LOG")
  exec 8>"$STAGE/.lock"
  flock --nonblock 8 || {
    LOG=""
    die 33 "another get-zk0bot.sh runs here; wait for it."
  }
}

plan() {
  say "machine: $DISTRIBUTION, $ARCHITECTURE, systemd: $SYSTEMD, GPU: $GPU$([ "$WSL" = no ] || printf ', WSL')$([ "$CONTAINER" = no ] || printf ', a container')"
  say "version: ${VERSION:+$VERSION }from $FROM"
  say "into:    $PREFIX${ROLE:+, as $ROLE}"
  [ "$GPU" != none ] || say "There is no NVIDIA GPU: training works on the processor, and takes longer."
  if ! dry && terminal; then
    case "$(ask 'Go on? [Y/n]')" in
      "" | [Yy]*) ;;
      *) die 34 "nothing was changed." ;;
    esac
  fi
}

main() {
  # bash may be reading this script from there, and no program is to take its lines.
  exec </dev/null
  EXECUTOR=perform ENDED=no KIND="" RELEASE="" SUMS="" NEXT="" RUNS="" INVITE="" YES=""
  trap 'bug "$?" "$LINENO" "$BASH_COMMAND"' ERR
  trap 'ENDED=yes; say "interrupted; run this again: it resumes"; exit 130' INT TERM HUP
  set -E
  read_command_line "$@"
  if [ "$DRY_RUN" = 1 ]; then EXECUTOR=pretend; fi
  check_tools
  look_at_machine
  prepare
  case "$ACTION" in
    rollback) do_rollback ;;
    uninstall) do_uninstall ;;
    install)
      look_at_gpu
      find_source
      plan
      get_release
      do_install
      case "$ROLE" in
        client) set_up_client ;;
        server) set_up_server ;;
        demo) run_demo ;;
        "") NEXT="zk0bot --help" ;;
      esac
      finish
      ;;
  esac
}

# Last, and in braces, so that a download that was cut short anywhere runs nothing.
{ main "$@"; }
