"""Watch scan lines with an exported model: needs NumPy and onnxruntime, nothing else.

python onnx_monitor.py MODEL.onnx LINES.npy     (lines × the model's pixels, in the order measured)
"""

import json
import sys

import numpy as np
import onnxruntime

model, lines = sys.argv[1:] if len(sys.argv) == 3 else sys.exit(__doc__)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["scanbench"])
dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
state = {node.name: np.zeros(node.shape, dtypes[node.type]) for node in session.get_inputs()[1:]}
scale = {"m": 1e-10, "A": 1e-12}.get(about["unit"], 1.0)

for number, heights in enumerate(np.load(lines, allow_pickle=False).astype(float), 1):
    flat = (heights - heights.mean()) / (heights.std() or 1.0)
    line = flat if about["normalisation"] == "line" else heights / scale
    logits, answered, *after = session.run(None, {"line": line.astype(np.float32), **state})
    state = dict(zip(state, after, strict=True))
    if answered[0]:
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        named = dict(zip(about["classes"], p.round(6).tolist(), strict=True))
        print(json.dumps({"line": number, "p": named}))
