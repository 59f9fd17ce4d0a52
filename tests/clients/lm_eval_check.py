"""lm_eval_check.py URL GGUF - lm-eval's `local-completions` on instances made here: the sums of log probabilities at batch 1 and at
batch 64 are the same bits, and within the tolerance of the quantised kernels of a float64 forward; its generation requests run."""
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))

import numpy_forward as reference  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402

PAIRS = [("The capital of France is", " Paris"), ("The capital of France is", " a banana that sings"), ("2 + 2 =", " 4"),
         ("Water boils at", " one hundred degrees"), ("def add(a, b):\n    return", " a + b"), ("Grüße aus", " Köln"),
         ("Once upon a time there was", " a little girl"), ("The opposite of hot is", " cold")]
PER_TOKEN = 0.02            # as the mean of logits_parity.py

url, model = sys.argv[1:3]


def harness(batch_size):
    return LocalCompletionsAPI(model="m", base_url=url + "/v1/completions", tokenizer_backend="remote", batch_size=batch_size,
                               max_length=2048, num_concurrent=1)


def scores(lm):
    asked = [Instance(request_type="loglikelihood", doc={}, arguments=(f"{context}", text), idx=i)
             for i, (context, text) in enumerate(PAIRS * 8)]
    return lm.loglikelihood(asked, disable_tqdm=True)


def wanted(lm):
    forward = reference.load_gguf(model)
    for context, text in PAIRS:
        before, after = lm._encode_pair(context, text)
        logits, _ = forward.run([before + after], 1)
        rows = logits[len(before) - 1:len(before) + len(after) - 1]
        rows = rows - rows.max(axis=-1, keepdims=True)
        rows = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
        picked = rows[np.arange(len(after)), after]
        second = np.sort(rows, axis=-1)[:, -2:]
        clear = (second[:, 1] - second[:, 0] > 2 * PER_TOKEN).all()
        yield picked.sum(), bool((rows.argmax(axis=-1) == after).all()), clear, len(after)


def main():
    one, many = harness(1), harness(64)
    alone, together = scores(one), scores(many)
    assert [tuple(x) for x in alone] == [tuple(x) for x in together], "batch 1 and batch 64 differ"
    worst = 0.0
    for (context, text), (value, greedy), (want, want_greedy, clear, n) in zip(PAIRS, together, wanted(one)):
        worst = max(worst, abs(value - want) / n)
        assert abs(value - want) <= PER_TOKEN * n, (context, text, value, want)
        assert greedy == want_greedy or not clear, (context, text, greedy, want_greedy)
    rolling = many.loglikelihood_rolling([Instance(request_type="loglikelihood_rolling", doc={}, idx=0,
                                                   arguments=("The capital of France is Paris, and that of Italy is Rome.",))], disable_tqdm=True)
    assert -60 < float(rolling[0]) < -5, rolling
    stops = {"until": ["\n\n", "Q:", "</s>", "<|im_end|>", "###"], "max_gen_toks": 12, "temperature": 0}
    made = many.generate_until([Instance(request_type="generate_until", doc={}, arguments=(context, stops), idx=i)
                                for i, (context, _) in enumerate(PAIRS)], disable_tqdm=True)
    assert len(made) == len(PAIRS) and "Paris" in made[0], made
    print(f"{len(PAIRS) * 8} pairs at batch 1 and 64 bit-equal; worst distance from float64 {worst:.4f} per token")


main()
