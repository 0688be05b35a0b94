"""Writes a random LLaVA of CLIP-L/336 and TinyLlama's shape (1.1 B) in bf16, for `llava-worker bench`.

    python tests/reference/one_billion.py DIR
"""
import sys

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

torch.manual_seed(1)
text = LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
    vocab_size=32064, max_position_embeddings=4096,
)
vision = CLIPVisionConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14,
    projection_dim=768,
)
torch.set_default_dtype(torch.bfloat16)
model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=32000))
model.save_pretrained(sys.argv[1])
