// What a program with OpenAI's Node client sees of a server. Usage: node openai_client.mjs http://host:port/v1
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const question = { model: "thumbwheel", messages: [{ role: "user", content: "Hi" }], temperature: 0 };

async function refusal(body) {
  try {
    await client.chat.completions.create({ ...question, ...body });
    return null;
  } catch (error) {
    return { kind: error.constructor.name, code: error.code, param: error.param };
  }
}

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const { data: whole, response } = await client.chat.completions.create(question).withResponse();
let streamed = "";
let streamedUsage = null;
const stream = await client.chat.completions.create({
  ...question,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  streamedUsage = chunk.usage;
}
const several = await client.chat.completions.create({ ...question, n: 2 });
const vote = await client.post("/feedback", { body: { response_id: whole.id, thumb: "up" } });

console.log(
  JSON.stringify({
    models,
    whole: whole.choices[0].message.content,
    streamed,
    usage: whole.usage,
    streamedUsage,
    version: response.headers.get("x-thumbwheel-version"),
    logged: whole.thumbwheel.logged,
    answers: several.choices.length,
    event: vote.event_id,
    missing: await refusal({ model: "gpt-9" }),
    wrong: await refusal({ temperature: 3 }),
  }),
);
