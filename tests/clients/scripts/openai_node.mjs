// The official Node client: what it does every day, and how it meets errors.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { apiKey, baseURL, narrowKey, run } from "./scenarios.mjs";

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const model = "default";
const hello = [{ role: "user", content: "Hello" }];
const please = (text) => [{ role: "user", content: `Please ${text}` }];
const question = [{ role: "user", content: "What is the weather in Paris?" }];
const person = [{ role: "user", content: "A person called 'Ada' is 36 years old." }];
const Person = z.object({ name: z.string(), age: z.number().int() });
const format = zodResponseFormat(Person, "person");
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const weather = {
  type: "function",
  function: { name: "get_weather", description: "Get the weather of a city.", parameters },
};

async function refusal(body, key = apiKey) {
  const asking = new OpenAI({ baseURL, apiKey: key, maxRetries: 0 });
  try {
    await asking.chat.completions.create({ model, messages: hello, ...body });
  } catch (error) {
    const { status, code, param, requestID } = error;
    return { class: error.constructor.name, status, code, param, requestID };
  }
  return { class: null };
}

await run({
  async create() {
    const answer = await client.chat.completions.create({ model, messages: hello });
    return { ...answer, requestID: answer._request_id };
  },

  async stream() {
    const chunks = await client.chat.completions.create({
      model,
      messages: hello,
      stream: true,
      stream_options: { include_usage: true },
    });
    const all = [];
    for await (const chunk of chunks) all.push(chunk);
    return all;
  },

  async streamHelper() {
    const final = await client.chat.completions
      .stream({ model, messages: hello })
      .finalChatCompletion();
    return final.choices[0];
  },

  async parse() {
    const answer = await client.chat.completions.parse({
      model,
      messages: person,
      response_format: format,
    });
    return answer.choices[0].message.parsed;
  },

  async parseStreamed() {
    const final = await client.chat.completions
      .stream({ model, messages: person, response_format: format })
      .finalChatCompletion();
    return final.choices[0].message.parsed;
  },

  async toolsRoundTrip() {
    const first = await client.chat.completions.create({
      model,
      messages: question,
      tools: [weather],
    });
    const { message, finish_reason } = first.choices[0];
    const [call] = message.tool_calls;
    const result = { role: "tool", tool_call_id: call.id, content: "20 C" };
    const second = await client.chat.completions.create({
      model,
      messages: [...question, message, result],
      tools: [weather],
    });
    return {
      arguments: JSON.parse(call.function.arguments),
      finishes: [finish_reason, second.choices[0].finish_reason],
      text: second.choices[0].message.content,
    };
  },

  async toolsStreamed() {
    const final = await client.chat.completions
      .stream({ model, messages: question, tools: [weather] })
      .finalChatCompletion();
    const { message, finish_reason } = final.choices[0];
    return [message.tool_calls[0].function.name, message.tool_calls[0].function.arguments, finish_reason];
  },

  async runTools() {
    const asked = [];
    const runner = client.chat.completions.runTools({
      model,
      messages: question,
      tools: [
        {
          type: "function",
          function: {
            name: "get_weather",
            description: "Get the weather of a city.",
            parameters,
            parse: JSON.parse,
            function: ({ city }) => {
              asked.push(city);
              return `sunny in ${city}`;
            },
          },
        },
      ],
    });
    return { text: await runner.finalContent(), asked };
  },

  async errors() {
    return {
      "no such key": await refusal({}, "sk-nobody"),
      "model not allowed": await refusal({ model: "gpt-6-luna" }, narrowKey),
      "no such model": await refusal({ model: "gpt-2" }),
      "no messages": await refusal({ messages: [] }),
      "context length": await refusal({ messages: please("fail: context length") }),
      "rate limit": await refusal({ messages: please("fail: rate limit") }),
      "server login": await refusal({ messages: please("fail: server login") }),
    };
  },

  async retries() {
    const counts = [];
    const statuses = [];
    const retrying = new OpenAI({
      baseURL,
      apiKey,
      maxRetries: 2,
      fetch: async (url, init) => {
        counts.push(new Headers(init.headers).get("x-stainless-retry-count"));
        const response = await fetch(url, init);
        statuses.push(response.status);
        return response;
      },
    });
    const messages = please("fail once: bad gateway, dear Node");
    const answer = await retrying.chat.completions.create({ model, messages });
    return { counts, statuses, text: answer.choices[0].message.content };
  },

  async cutStreamThrows() {
    let got = "";
    try {
      const chunks = await client.chat.completions.create({
        model,
        messages: please("fail: cut"),
        stream: true,
      });
      for await (const chunk of chunks) got += chunk.choices[0].delta.content ?? "";
    } catch (error) {
      return { got, class: error.constructor.name, code: error.code };
    }
    throw new Error(`it ended as if it were whole: ${got}`);
  },
});
