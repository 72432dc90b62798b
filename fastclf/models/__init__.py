"""Networks: pretrained bodies, the head, and the layer groups that train."""
