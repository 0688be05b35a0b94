// What openai-node promises its users, asked of a worker.
//
//     node matrix.mjs http://127.0.0.1:8000 MODEL
//
// Ends with status 0 when every case holds, else with the first that does not.

import assert from "node:assert/strict";
import { crc32, deflateSync } from "node:zlib";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const chat = client.chat.completions;
const same = { model, temperature: 0, logit_bias: { 2: -100 } };
const user = (content) => [{ role: "user", content }];

/** A picture of one colour, as a data: URI. */
function png(colour, width = 40, height = 30) {
  const chunk = (kind, data) => {
    const body = Buffer.concat([Buffer.from(kind), data]);
    const [length, check] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(data.length);
    check.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, check]);
  };
  const row = Buffer.concat([Buffer.from([0]), ...Array(width).fill(Buffer.from(colour))]);
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2], 8);
  const pixels = deflateSync(Buffer.concat(Array(height).fill(row)));
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  const parts = [signature, chunk("IHDR", header), chunk("IDAT", pixels), chunk("IEND", Buffer.alloc(0))];
  return `data:image/png;base64,${Buffer.concat(parts).toString("base64")}`;
}

async function gathered(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const said = (chunks, index = 0) =>
  chunks
    .flatMap((chunk) => chunk.choices)
    .filter((choice) => choice.index === index)
    .map((choice) => choice.delta.content ?? "")
    .join("");

async function refused(kind, code, request) {
  await assert.rejects(request, (error) => {
    assert.ok(error instanceof kind, `${error}`);
    assert.equal(error.code, code);
    assert.ok(error.requestID);
    return true;
  });
}

// Models.
const models = await gathered(await client.models.list());
assert.ok(models.some((entry) => entry.id === model));
assert.equal((await client.models.retrieve(model)).id, model);

// A whole answer, and its token counts.
const whole = await chat.create({ messages: user("Hello"), max_tokens: 8, ...same });
const text = whole.choices[0].message.content;
assert.equal(whole.choices[0].message.role, "assistant");
assert.equal(whole.choices[0].finish_reason, "length");
assert.equal(whole.choices[0].logprobs, null);
assert.equal(whole.usage.completion_tokens, 8);
assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + 8);

// The same as a stream, without and with token counts.
let chunks = await gathered(await chat.create({ messages: user("Hello"), max_tokens: 8, stream: true, ...same }));
assert.equal(chunks[0].choices[0].delta.role, "assistant");
assert.equal(said(chunks), text);
assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
assert.ok(chunks.every((chunk) => chunk.usage === undefined));
const counted = { stream: true, stream_options: { include_usage: true } };
chunks = await gathered(await chat.create({ messages: user("Hello"), max_tokens: 8, ...counted, ...same }));
assert.deepEqual(chunks.at(-1).choices, []);
assert.equal(chunks.at(-1).usage.completion_tokens, 8);
assert.ok(chunks.slice(0, -1).every((chunk) => chunk.usage === null));

// Stop texts, whole and through the stream helper.
const stop = text.slice(3, 5);
const stopped = await chat.create({ messages: user("Hello"), max_tokens: 8, stop: [stop, "\0"], ...same });
assert.equal(stopped.choices[0].message.content, text.split(stop)[0]);
assert.equal(stopped.choices[0].finish_reason, "stop");
const helper = chat.stream({ messages: user("Hello"), max_tokens: 8, stop, ...same });
assert.equal((await helper.finalChatCompletion()).choices[0].message.content, stopped.choices[0].message.content);

// A caller that stops listening.
const left = await chat.create({ messages: user("Hello"), max_tokens: 500, stream: true, ...same });
for await (const chunk of left) if (said([chunk])) break;

// Several images.
const image = (colour) => ({ type: "image_url", image_url: { url: png(colour), detail: "low" } });
const [red, blue] = [image([255, 0, 0]), image([0, 0, 255])];
const words = { type: "text", text: "?" };
const shown = await chat.create({ messages: user([red, words, blue]), max_tokens: 8, ...same });
const swapped = await chat.create({ messages: user([blue, words, red]), max_tokens: 8, ...same });
assert.equal(shown.usage.prompt_tokens, swapped.usage.prompt_tokens);
assert.ok(shown.usage.prompt_tokens > whole.usage.prompt_tokens);

// Several answers, and probabilities.
const wanted = { messages: user("Hello"), max_tokens: 3, n: 3, ...same };
const several = await chat.create({ ...wanted, logprobs: true, top_logprobs: 2 });
assert.deepEqual(several.choices.map((choice) => choice.index), [0, 1, 2]);
for (const choice of several.choices) {
  assert.ok(text.startsWith(choice.message.content));
  const tokens = choice.logprobs.content;
  assert.equal(tokens.length, 3);
  assert.ok(tokens.every((token) => token.top_logprobs.length === 2 && token.logprob <= 0));
  assert.equal(Buffer.from(tokens[0].bytes).toString(), tokens[0].token);
}
chunks = await gathered(await chat.create({ ...wanted, stream: true, logprobs: true }));
for (const { index, message } of several.choices) assert.equal(said(chunks, index), message.content);
const listed = chunks.flatMap((chunk) => chunk.choices).flatMap((choice) => choice.logprobs?.content ?? []);
assert.equal(listed.length, 9);

// Draws that a seed makes repeatable.
const drawn = async () => (await chat.create({ model, messages: user("Hello"), max_tokens: 8, seed: 7 })).choices[0].message.content;
assert.equal(await drawn(), await drawn());

// Completions.
const asked = { prompt: "abc", max_tokens: 4, echo: true, ...same };
const completion = await client.completions.create({ ...asked, logprobs: 1 });
assert.ok(completion.choices[0].text.startsWith("abc"));
assert.equal(completion.choices[0].logprobs.tokens.length, 4);
const pieces = await gathered(await client.completions.create({ ...asked, stream: true }));
assert.equal(pieces.map((piece) => piece.choices[0].text).join(""), completion.choices[0].text);

// Errors arrive as the SDK's classes.
const { BadRequestError, NotFoundError } = OpenAI;
await refused(NotFoundError, "model_not_found", () => chat.create({ model: "no", messages: user("x") }));
await refused(BadRequestError, "invalid_value", () => chat.create({ model, messages: [] }));
await refused(BadRequestError, "invalid_value", () => chat.create({ model, messages: user("x"), temperature: 3 }));
const tools = [{ type: "function", function: { name: "f" } }];
await refused(BadRequestError, "unsupported_parameter", () => chat.create({ model, messages: user("x"), tools }));
const remote = [{ type: "image_url", image_url: { url: "https://example.com/x.png" } }];
await refused(BadRequestError, "remote_images_disabled", () => chat.create({ model, messages: user(remote) }));
const broken = [{ type: "image_url", image_url: { url: png([1, 2, 3]).slice(0, 90) } }];
await refused(BadRequestError, "image_damaged", () => chat.create({ model, messages: user(broken) }));
const long = user("x".repeat(100_000));
await refused(BadRequestError, "context_length_exceeded", () => chat.create({ model, messages: long }));
// Refused before the first byte, although a stream was asked for.
await refused(BadRequestError, "context_length_exceeded", () => chat.create({ model, messages: long, stream: true }));

// Many at once.
const together = Array.from({ length: 8 }, () => chat.create({ messages: user("Hello"), max_tokens: 8, ...same }));
for (const answer of await Promise.all(together)) assert.equal(answer.choices[0].message.content, text);
console.log("every case holds");
