"""The body without gradients, through the fastest runtime that computes the same.

`trace` writes the body as an ONNX file, `engines` run it, the fastest of them is measured once per machine, `checksum`
notices changes, and `frozen` brings them together for `Net.features`.

Images per second at 224 pixels, batches of 32, two threads of a Zen 3 processor:

| | EfficientNet-Lite0 | ResNet-34 | ResNet-50 |
|---|---|---|---|
| torch, channels last | 39 | 21.4 | 13.2 |
| torch.compile with freezing | 63 | 23.9 | 19.3 |
| OpenVINO | 149 | 24.8 | 20.8 |
| ONNX Runtime | 166 | 25.9 | 22.0 |

So torch.compile is no candidate: it was never the fastest, and needs a compiler. Folding BatchNorm in torch is none
either: 1.3 times torch on EfficientNet-Lite0, where ONNX Runtime was 2.4 times (a busy Zen 1 processor).

Transformers gain too: ONNX Runtime gives 2.5 times as many images per second as torch for ViT-S/16, 3.9 times for
Swin-T (medians of five pairs at 224 pixels, batches of 16, on a busy two-core machine).
"""
