"""make_processor.py GGUF FOLDER - the model's tokenizer as a folder that transformers' AutoTokenizer reads."""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))

import numpy_forward as reference  # noqa: E402

folder = pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
reference.gguf_tokenizer(sys.argv[1]).save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
                                                          "bos_token": "<|im_start|>", "model_max_length": 8192}))
