"""What openai-python promises its users, asked of a worker.

    python matrix.py http://127.0.0.1:8000 MODEL

Ends with status 0 when every case holds, else with the first that does not.
"""

import asyncio
import base64
import struct
import sys
import zlib

import openai


def png(colour: tuple[int, int, int], width: int = 40, height: int = 30) -> str:
    """A picture of one colour, as a data: URI."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(colour) * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def user(content: object) -> list:
    return [{"role": "user", "content": content}]


def refused(kind: type[openai.APIStatusError], code: str, call) -> None:
    try:
        call()
    except kind as error:
        assert error.code == code, (error.code, code)
        assert error.request_id
    else:
        raise AssertionError(f"{code} was not raised")


def main(url: str, model: str) -> None:
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    chat = client.chat.completions
    same = {"model": model, "temperature": 0, "logit_bias": {"2": -100}}

    assert model in [entry.id for entry in client.models.list()]
    assert client.models.retrieve(model).id == model

    whole = chat.create(messages=user("Hello"), max_tokens=8, **same)
    text = whole.choices[0].message.content
    assert whole.choices[0].message.role == "assistant" and whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 8 and whole.usage.total_tokens == whole.usage.prompt_tokens + 8

    chunks = list(chat.create(messages=user("Hello"), max_tokens=8, stream=True, **same))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "length" and chunks[-1].usage is None

    usage = {"include_usage": True}
    chunks = list(chat.create(messages=user("Hello"), max_tokens=8, stream=True, stream_options=usage, **same))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8
    assert all(chunk.usage is None for chunk in chunks[:-1])

    stopped = chat.create(messages=user("Hello"), max_tokens=8, stop=[text[3:5], "\0"], **same)
    assert stopped.choices[0].message.content == text.split(text[3:5])[0]
    assert stopped.choices[0].finish_reason == "stop"

    # The helper takes an answer that was cut by its length for an error.
    with chat.stream(messages=user("Hello"), max_tokens=8, stop=text[3:5], **same) as events:
        for _ in events:
            pass
        assert events.get_final_completion().choices[0].message.content == stopped.choices[0].message.content

    images = [{"type": "image_url", "image_url": {"url": png(c), "detail": "low"}} for c in [(255, 0, 0), (0, 0, 255)]]
    shown = chat.create(messages=user([images[0], {"type": "text", "text": "?"}, images[1]]), max_tokens=8, **same)
    swapped = chat.create(messages=user([images[1], {"type": "text", "text": "?"}, images[0]]), max_tokens=8, **same)
    assert shown.usage.prompt_tokens == swapped.usage.prompt_tokens
    assert shown.choices[0].logprobs is None

    several = chat.create(messages=user("Hello"), max_tokens=3, n=3, logprobs=True, top_logprobs=2, **same)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    for choice in several.choices:
        assert choice.message.content == text[: len(choice.message.content)]
        tokens = choice.logprobs.content
        assert len(tokens) == 3 and all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
        assert bytes(tokens[0].bytes).decode() == tokens[0].token
    pieces = [[], [], []]
    for chunk in chat.create(messages=user("Hello"), max_tokens=3, n=3, stream=True, **same):
        pieces[chunk.choices[0].index].append(chunk.choices[0].delta.content or "")
    assert ["".join(piece) for piece in pieces] == [choice.message.content for choice in several.choices]

    drawn = [chat.create(model=model, messages=user("Hello"), max_tokens=8, seed=7).choices[0].message.content for _ in "ab"]
    assert drawn[0] == drawn[1]

    completion = client.completions.create(prompt="abc", max_tokens=4, logprobs=1, echo=True, **same)
    assert completion.choices[0].text.startswith("abc") and len(completion.choices[0].logprobs.tokens) == 4
    streamed = client.completions.create(prompt="abc", max_tokens=4, echo=True, stream=True, **same)
    assert "".join(chunk.choices[0].text for chunk in streamed) == completion.choices[0].text

    refused(openai.NotFoundError, "model_not_found", lambda: chat.create(model="no", messages=user("x")))
    refused(openai.BadRequestError, "invalid_value", lambda: chat.create(model=model, messages=[]))
    refused(openai.BadRequestError, "invalid_value", lambda: chat.create(model=model, messages=user("x"), temperature=3))
    tool = {"type": "function", "function": {"name": "f"}}
    refused(openai.BadRequestError, "unsupported_parameter", lambda: chat.create(model=model, messages=user("x"), tools=[tool]))
    remote = [{"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}]
    refused(openai.BadRequestError, "remote_images_disabled", lambda: chat.create(model=model, messages=user(remote)))
    broken = [{"type": "image_url", "image_url": {"url": png((1, 2, 3))[:90]}}]
    refused(openai.BadRequestError, "image_damaged", lambda: chat.create(model=model, messages=user(broken)))
    long = user("x" * 100_000)
    refused(openai.BadRequestError, "context_length_exceeded", lambda: chat.create(model=model, messages=long))

    async def together() -> list[str]:
        several = openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        asked = [several.chat.completions.create(messages=user("Hello"), max_tokens=8, **same) for _ in range(8)]
        return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(together()) == [text] * 8
    print("every case holds")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
