#!/usr/bin/env bash
# From nothing to a planned episode: this file is the specification of the whole pipeline.
# Takes about four hours on two CPU cores; stop it at any time and run it again to go on.
set -euo pipefail
OUT=${1:-runs/end_to_end}

armworld recipe --out "$OUT" --workers 2                  # collect, pretrain, post-train, export to $OUT/weights
armworld validate "$OUT/data/reach"                       # every file of a dataset, checked
armworld doctor "$OUT/weights" --out "$OUT/doctor"        # what the model sees, predicts and ranks
armworld plan --model "$OUT/weights" --seeds 1000000-1000019 --out "$OUT/choose"      # seeds for choosing settings
armworld plan --model "$OUT/weights" --seeds 2000000-2000099 --workers 2 --out "$OUT/report"   # seeds for reporting
echo "page: $OUT/report/index.html"
