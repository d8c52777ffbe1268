# Everything that the installed package does, in a folder that has nothing of the checkout. Run by .ci/run.

python - <<'PYTHON'
import importlib.metadata
import pathlib
import re
import sys

import dtp

assert pathlib.Path(dtp.__file__).is_relative_to(sys.prefix), f"not the wheel: {dtp.__file__}"
told = importlib.metadata.metadata("targetprop")
assert "dtp train" in told["Description"] and told["Description-Content-Type"] == "text/markdown"
# Of the repository's files and pictures there is none.
assert not re.search(r"\]\((?!https?:)", told["Description"])
PYTHON

dtp --version
dtp --help >help.txt
dtp train --help >>help.txt
for command in sweep search theory report slurm completion; do
    dtp "$command" --help >>help.txt
done

short=(--model mlp --widths 16 --batch-size 128 --max-epochs 1)
dtp train "${short[@]}" --config dtp_mlp_digits --run-dir trained
dtp train "${short[@]}" --init-weights trained/weights.safetensors --run-dir tuned
dtp sweep lee-discrete --list >sweep.txt
dtp search --algo bp "${short[@]}" --trials 1 --study study
dtp theory transpose --help >>help.txt
dtp report trained study --no-figures --output report.md
dtp slurm vgg_dtp >job.sh
bash -n job.sh
dtp completion bash >completion.sh
bash -n completion.sh

python - <<'PYTHON'
import dtp

result = dtp.train(algo="bp", model="mlp", widths=[16], max_epochs=1)
assert 0.5 < result.summary["test_accuracy"] <= 1 and len(result.metrics) > 1
assert type(dtp.load("trained")).__name__ == "DTP" and type(result.load()).__name__ == "BP"
PYTHON
echo "the wheel works"
