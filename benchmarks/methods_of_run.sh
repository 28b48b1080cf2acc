#!/bin/sh
# Other methods on the blends of a run, then the comparison; files newer than the blends stay.
# usage: methods_of_run.sh RUN PARTS BAND NAME=PATH...
# PARTS of 25 blends go through scarlet2; NAME=PATH as in compare_methods.py, the first one leads.
set -eu
run=$1 parts=$2 band=$3
shift 3
here=$(dirname "$0")
python=${BIN:-.venv/bin}/python peers=${PEERS:-.venv-peers}/bin/python
out=$run/peers size=25
mkdir -p "$out"

fresh() {
	[ -e "$1" ] && [ -z "$(find "$run/blends" -name '*.h5' -newer "$1")" ]
}

fresh "$out/photutils_auto.h5" || "$peers" "$here/peer_pixels.py" "$run"
fresh "$out/score_map.h5" ||
	"$python" "$here/score_map_of_run.py" "$run" --prior "$run/prior/00.eqx"
for file in "$out"/scarlet2_*.h5; do
	fresh "$file" || rm -f "$file"
done
part=0
while [ "$part" -lt "$parts" ]; do
	name=$(printf 'scarlet2_%03d.h5' "$part")
	if ! fresh "$out/$name"; then
		code=0
		"$peers" "$here/peer_scarlet2.py" "$run" --band "$band" --min-blendedness=-1 \
			--max-blends "$size" --skip $((part * size)) --output "$name" || code=$?
		# 3: all blends are fitted.
		[ "$code" -ne 3 ] || break
		[ "$code" -eq 0 ] || exit "$code"
	fi
	part=$((part + 1))
done

# The path of scarlet2 is a pattern: quoted, so that the shell leaves it alone.
set -- "$@" "score_map=$out/score_map.h5" "profiles=$run/map"
[ ! -e "$out/scarlet2_000.h5" ] || set -- "$@" "scarlet2=$out/scarlet2_*.h5"
for name in sep_auto sep sep_aperture photutils_auto photutils none; do
	set -- "$@" "$name=$out/$name.h5"
done
count=$#
while [ "$count" -gt 0 ]; do
	method=$1
	shift
	set -- "$@" --method "$method"
	count=$((count - 1))
done
if [ -d "$run/truth" ]; then
	"$python" "$here/compare_methods.py" "$run" --band "$band" "$@" >"$out/comparison.log"
else
	"$python" "$here/lsst_sim_scores.py" "$run" "$@"
fi
