// What openai-node makes of a stream that its server has to break off.
//
//     node broken.mjs http://127.0.0.1:8000 MODEL
//
// Says `streaming` when the answer has begun, then waits for it to break. Ends with
// status 0 when the SDK threw the server's own words.

import assert from "node:assert/strict";
import OpenAI, { APIError } from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const stream = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: "Go on" }],
  // Never the end of the text.
  logit_bias: { 2: -100 },
  max_tokens: 1500,
  n: 8,
  stream: true,
});
const chunks = stream[Symbol.asyncIterator]();
await chunks.next();
console.log("streaming");
const rest = async () => {
  while (!(await chunks.next()).done);
};
await assert.rejects(rest, (error) => {
  assert.ok(error instanceof APIError);
  assert.deepEqual([error.type, error.code], ["stream_error", "draining"]);
  return true;
});
