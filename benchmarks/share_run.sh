#!/bin/sh
# What does not depend on the prior is the same in both runs: hard links.
# usage: share_run.sh FROM TO [PART...]
set -eu
from=$1 to=$2
shift 2
if [ $# -eq 0 ]; then
	set -- checked.json fields truth stamps blends statistics map prior/basis.eqx
fi
for part in "$@"; do
	if [ -e "$from/$part" ]; then
		mkdir -p "$(dirname "$to/$part")"
		cp -alf "$from/$part" "$(dirname "$to/$part")/"
	fi
done
