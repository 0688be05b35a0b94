"""What openai-python makes of a stream that its server has to break off.

    python broken.py http://127.0.0.1:8000 MODEL

Says `streaming` when the answer has begun, then waits for it to break. Ends with
status 0 when the SDK raised the server's own words.
"""

import sys

import openai


def main(url: str, model: str) -> None:
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Go on"}],
        # Never the end of the text.
        logit_bias={"2": -100},
        max_tokens=1500,
        n=8,
        stream=True,
    )
    chunks = iter(stream)
    next(chunks)
    print("streaming", flush=True)
    try:
        for _ in chunks:
            pass
    except openai.APIError as error:
        assert error.type == "stream_error" and error.code == "draining", error.body
        assert error.message, error.body
    else:
        raise AssertionError("a stream that broke off looked like one that ended")


main(*sys.argv[1:])
