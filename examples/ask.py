"""Asks a served model about an image with OpenAI's SDK, and prints the answer as it comes.

    pip install openai
    python examples/ask.py IMAGE QUESTION [MODEL]

LLAVA_URL is where the router is, http://localhost:8080 when unset; LLAVA_API_KEY
is a key, where the router asks for one.
"""

import base64
import mimetypes
import os
import sys
from pathlib import Path

from openai import OpenAI


def main(image: str, question: str, model: str | None = None) -> None:
    client = OpenAI(
        base_url=os.environ.get("LLAVA_URL", "http://localhost:8080") + "/v1",
        api_key=os.environ.get("LLAVA_API_KEY", "none"),
        # A port that was just forwarded opens a moment later.
        max_retries=6,
    )
    model = model or next(iter(client.models.list())).id
    kind = mimetypes.guess_type(image)[0] or "image/png"
    data = base64.b64encode(Path(image).read_bytes()).decode()
    stream = client.chat.completions.create(
        model=model,
        stream=True,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}},
                    {"type": "text", "text": question},
                ],
            }
        ],
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
