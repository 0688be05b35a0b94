"""Writes tests/fixtures/prompts: rendered prompts and token ids of LLaVA and transformers.

    python tests/reference/prompts.py --llava PATH --llava-next PATH

The paths are checkouts of both repositories; only their conversation templates and
`tokenizer_image_token` are run. Versions: tests/reference/requirements-slow.txt.

LLaMA 3's conversation is rendered by its tokenizer, which is not public: its published
chat template stands in for it.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import sys
import types

os.environ["HF_HUB_OFFLINE"] = "1"  # LLaVA-NeXT asks the hub for a tokenizer that only LLAMA_3 needs
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, LlamaTokenizerFast, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = pathlib.Path(__file__).parent
OUT = HERE.parent / "fixtures" / "prompts"
CORPUS = HERE.parent.parent / "LICENSE"


def stub(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


def load(path, name, file):
    spec = importlib.util.spec_from_file_location(name, pathlib.Path(path) / "llava" / file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --- conversation templates ------------------------------------------------------------------

DIALOGUES = [
    [("user", "What is the capital of France?", False)],
    [("user", "  What is on the\nphoto? ", True)],
    [("user", "What is this?", True), ("assistant", "A cat.", False), ("user", "And its colour?", False)],
    [("user", "Hello.", False), ("assistant", "Hi!", False), ("user", "What is this?", True)],
]


def as_messages(dialogue):
    messages = []
    for role, text, image in dialogue:
        content = [{"type": "text", "text": text}, {"type": "image"}] if image else text
        messages.append({"role": role, "content": content})
    return messages


LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


class Llama3Tokenizer:
    @staticmethod
    def apply_chat_template(messages, tokenize, add_generation_prompt):
        template = _compile_jinja_template(LLAMA_3)
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<|begin_of_text|>")


def conversations(module):
    for name, template in module.conv_templates.items():
        llama_3 = template.sep_style.name == "LLAMA_3"
        for dialogue in DIALOGUES:
            # The original takes an empty exchange apart: a plain template renders one pair only.
            if name in ("plain", "v0_plain") and len(dialogue) > 1:
                continue
            # It cannot take an image of a later turn apart in LLaMA 3's style.
            if llama_3 and any(image for _, _, image in dialogue[1:]):
                continue
            conversation = template.copy()
            if llama_3:
                conversation.tokenizer = Llama3Tokenizer
            for role, text, image in dialogue:
                role = conversation.roles[0 if role == "user" else 1]
                # As on the web page: the placeholder goes after the text.
                conversation.append_message(role, (text + "\n<image>", [], "Default") if image else text)
            conversation.append_message(conversation.roles[1], None)
            yield {"template": name, "messages": as_messages(dialogue), "prompt": conversation.get_prompt()}


def stops(module):
    """What ends an answer: by the web page (`http_bot`), by the terminal (`cli.py`), and by token ids."""
    for name, template in module.conv_templates.items():
        style = template.sep_style.name
        yield {
            "template": name,
            "style": style,
            "page": template.sep if style in ("SINGLE", "MPT") else template.sep2,
            "terminal": template.sep if style != "TWO" else template.sep2,
            "ids": getattr(template, "stop_token_ids", None) or [],
        }


# --- chat templates ------------------------------------------------------------------------------

IMAGES_FIRST = (
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
)
CHAT_TEMPLATES = {
    "llava_1_5": "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}" + IMAGES_FIRST + "{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "llava_1_6_vicuna": "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }}{% else %}{{ message['role'].upper() + ': '}}{% endif %}"
    + IMAGES_FIRST + "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "llava_1_6_mistral": "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}" + IMAGES_FIRST + "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}{{' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> '}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "qwen": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}" + IMAGES_FIRST.replace("\\n", "\n")
    + "{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "indented": """{%- if messages[0]['role'] == 'system' -%}
    {{- bos_token + messages[0]['content'][0]['text'] | trim + eos_token }}
{%- else %}
{{ bos_token }}
{% endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {{ message.content[0].text | trim }}{{ eos_token }}
        {%- endgeneration %}
    {%- elif message.role == 'user' %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<image>' }}
            {%- else %}
                {{- part.text.strip() }}
            {%- endif %}
            {%- if not loop.last %}{{ '|' }}{% endif %}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{ '>>>' }}
{%- endif %}
""",
}


def chats():
    system = {"role": "system", "content": [{"type": "text", "text": " Answer briefly. "}]}
    several = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "One and"}, {"type": "image"}, {"type": "text", "text": "two?"}]}
    conversations = [as_messages(dialogue) for dialogue in DIALOGUES] + [[system, several], [several]]
    for name, source in CHAT_TEMPLATES.items():
        template = _compile_jinja_template(source)
        for messages in conversations:
            parts = [
                {**message, "content": [{"type": "text", "text": message["content"]}] if isinstance(message["content"], str) else message["content"]}
                for message in messages
            ]
            prompt = template.render(messages=parts, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
            yield {"template": name, "messages": messages, "prompt": prompt}


# --- tokenizers ------------------------------------------------------------------------------------

TEXTS = [
    "Hello", " Hello  world ", "", "\n", "What is on the photo?\n", "naïve café — 東京 🦙", "1234567890", "a\tb\r\nc",
    "USER: hi ASSISTANT:", "The quick brown fox jumps over the lazy dog.", "   ", "x" * 40, "permission of the copyright holder",
]
PROMPTS = [
    "A chat. USER: <image>\nWhat is it? ASSISTANT:",
    "A chat. USER: Hi. ASSISTANT: Hello.</s>USER: More? ASSISTANT:",
    "USER: <image><image>\nBoth? ASSISTANT: Yes.</s>USER: <image> ASSISTANT:",
    "<image>", "<image> x", "[INST] <image>\nlicence [/INST] ok </s> [INST] more [/INST]", "</s>", "a</s>b</s> c",
]
CHATML = [
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\n<image> <image>x<|im_end|>",
]


def llama(mm_utils):
    folder = OUT / "llama"
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        # The model remembers these: not the folders of a machine.
        input=os.path.relpath(CORPUS), model_prefix=os.path.relpath(folder / "tokenizer"), vocab_size=800, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, split_digits=True,
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2, num_threads=1,
    )
    (folder / "tokenizer.vocab").unlink()
    cases = {}
    for legacy in (True, False):
        slow = LlamaTokenizer(str(folder / "tokenizer.model"), legacy=legacy)
        ids = [{"text": text, "ids": mm_utils.tokenizer_image_token(text, slow)} for text in TEXTS + PROMPTS]
        cases["original_legacy" if legacy else "original"] = ids
        # The same tokenizer as transformers ships it: converted, with <image> in the vocabulary.
        fast = LlamaTokenizerFast.from_pretrained(str(folder), legacy=legacy)
        fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
        name = "hf_legacy" if legacy else "hf"
        (OUT / name).mkdir(exist_ok=True)
        fast.backend_tokenizer.save(str(OUT / name / "tokenizer.json"), pretty=False)
        (OUT / name / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}) + "\n")
        image = fast.convert_tokens_to_ids("<image>")
        cases[name] = [
            {"text": text, "ids": [-200 if i == image else i for i in fast(text).input_ids]} for text in TEXTS + PROMPTS
        ]
    return cases


def enclosed(mm_utils):
    """The tokenizer of a checkpoint with `mm_use_im_start_end`, as LLaVA saves it, and prompts as its worker marks them."""
    slow = LlamaTokenizer(str(OUT / "llama" / "tokenizer.model"), legacy=True)
    slow.add_tokens(["<im_patch>"], special_tokens=True)
    slow.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    folder = OUT / "llama_enclosed"
    slow.save_pretrained(folder)
    (folder / "tokenizer.model").unlink()  # The same as in `llama`.
    marked = lambda text: text.replace("<image>", "<im_start><image><im_end>")
    return {
        "original_enclosed": [
            {"text": text, "ids": mm_utils.tokenizer_image_token(marked(text), slow)} for text in TEXTS + PROMPTS
        ]
    }


def qwen(mm_utils):
    tokenizer = Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"],
    )
    tokenizer.train([str(CORPUS)], trainer)
    (OUT / "qwen").mkdir(exist_ok=True)
    tokenizer.save(str(OUT / "qwen" / "tokenizer.json"), pretty=False)
    (OUT / "qwen" / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "eos_token": "<|im_end|>"}) + "\n")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    image = fast.convert_tokens_to_ids("<image>")
    texts = TEXTS + PROMPTS + CHATML
    return {
        "qwen": [{"text": text, "ids": [-200 if i == image else i for i in fast(text).input_ids]} for text in texts],
        "original_qwen": [{"text": text, "ids": mm_utils.tokenizer_image_token(text, fast)} for text in texts],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--llava", required=True)
    parser.add_argument("--llava-next", required=True)
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    stub("PIL", Image=None)
    stub("torch", LongTensor=object, FloatTensor=object, Tensor=object)
    stub("llava", __path__=[])
    stub("llava.constants", IMAGE_TOKEN_INDEX=-200)
    both = [load(args.llava, "llava_conversation", "conversation.py"), load(args.llava_next, "next_conversation", "conversation.py")]
    golden, seen = [], set()
    for module in both:
        for case in conversations(module):
            key = json.dumps(case)
            if key not in seen:
                seen.add(key)
                golden.append(case)
    (OUT / "conversations.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in golden) + "\n]\n")
    ends = {json.dumps(end): end for module in both for end in stops(module)}
    (OUT / "stops.json").write_text("[\n" + ",\n".join(ends) + "\n]\n")
    (OUT / "chat_templates.json").write_text(json.dumps(CHAT_TEMPLATES, indent=1) + "\n")
    (OUT / "chats.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in chats()) + "\n]\n")
    mm_utils = load(args.llava, "llava_mm_utils", "mm_utils.py")
    cases = {**llama(mm_utils), **enclosed(mm_utils), **qwen(mm_utils)}
    (OUT / "tokens.json").write_text(json.dumps(cases) + "\n")
