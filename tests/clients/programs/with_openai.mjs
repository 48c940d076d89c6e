// Common calls with openai-node. argv: the base URL, a recording. Prints the results as JSON.
import fs from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [, , baseURL, recording, home] = process.argv;
const entry = createRequire(pathToFileURL(`${home}/package.json`)).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(entry));
const ai = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hello there" }];
const tools = [{ type: "function", function: { name: "f", parameters: { type: "object", properties: {} } } }];

const found = { models: [] };
for await (const model of ai.models.list()) found.models.push(model.id);
found.model = (await ai.models.retrieve("echo")).id;
for (const model of ["echo", "gpt", "cloud/gpt"]) {
  const said = await ai.chat.completions.create({ model, messages });
  let streamed = "";
  const usage = [];
  const options = { model, messages, stream: true, stream_options: { include_usage: true }, tools };
  for await (const chunk of await ai.chat.completions.create(options)) {
    for (const choice of chunk.choices) streamed += choice.delta.content ?? "";
    if (chunk.usage) usage.push(chunk.usage.total_tokens);
  }
  const { message, finish_reason } = said.choices[0];
  found[model] = { whole: message.content, finish_reason, streamed, usage };
}
found.completion = (await ai.completions.create({ model: "echo", prompt: "go on" })).choices[0].text;
const input = "a text";
found.embedding = (await ai.embeddings.create({ model: "echo", input })).data[0].embedding;
found.floats = (await ai.embeddings.create({ model: "echo", input, encoding_format: "float" })).data[0].embedding;
found.relayed = (await ai.embeddings.create({ model: "embed", input: ["a", "b"] })).data[1].embedding;
for (const response_format of ["json", "text"]) {
  const file = fs.createReadStream(recording);
  const transcript = await ai.audio.transcriptions.create({ model: "whisper", file, response_format });
  found[`transcribed as ${response_format}`] = typeof transcript === "string" ? transcript : transcript.text;
}
found.response = (await ai.responses.create({ model: "gpt", input: "hello" })).output_text;
try {
  await ai.chat.completions.create({ model: "ecko", messages });
} catch (error) {
  if (!(error instanceof OpenAI.NotFoundError)) throw error;
  found.unknown = [error.code, error.param, error.message.includes("echo")];
}
const { response } = await ai.chat.completions.create({ model: "echo", messages }).withResponse();
const header = (name) => response.headers.get(name);
found.headers = [header("x-gateway-backend"), !!header("x-request-id"), header("server-timing").includes("total;dur=")];
console.log(JSON.stringify(found));
