"""make_processor.py GGUF FOLDER - the model's tokenizer as a cache of the Hugging Face hub (HF_HOME) that holds it as "local/model":
some clients take no folder for a tokenizer."""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))

import numpy_forward as reference  # noqa: E402
from tokenizers import decoders  # noqa: E402

REVISION = "0" * 40

repo = pathlib.Path(sys.argv[2]) / "hub" / "models--local--model"
folder = repo / "snapshots" / REVISION
folder.mkdir(parents=True, exist_ok=True)
(repo / "refs").mkdir(exist_ok=True)
(repo / "refs" / "main").write_text(REVISION)
tokenizer = reference.gguf_tokenizer(sys.argv[1])
tokenizer.decoder = decoders.ByteLevel()
tokenizer.save(str(folder / "tokenizer.json"))
(folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
                                                          "bos_token": "<|im_start|>", "model_max_length": 8192}))
