#!/bin/sh
# What does not depend on the tier of the prior is the same in both runs: hard links.
# usage: share_run.sh FROM TO
set -eu
mkdir -p "$2/prior"
for part in checked.json fields truth stamps blends statistics map prior/basis.eqx; do
	if [ -e "$1/$part" ]; then cp -aln "$1/$part" "$(dirname "$2/$part")/"; fi
done
