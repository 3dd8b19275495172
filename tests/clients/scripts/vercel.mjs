// The Vercel AI SDK with its provider for OpenAI-compatible servers.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { apiKey, baseURL, run } from "./scenarios.mjs";

const provider = (settings) =>
  createOpenAICompatible({ name: "codexsite", baseURL, apiKey, includeUsage: true, ...settings });
const model = provider()("default");
const structured = provider({ supportsStructuredOutputs: true })("default");
const Person = z.object({ name: z.string(), age: z.number().int() });
const person = "A person called 'Ada' is 36 years old.";
const question = "What is the weather in Paris?";
const tools = {
  get_weather: tool({
    description: "Get the weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `sunny in ${city}`,
  }),
};

async function refusal(settings, name, prompt) {
  try {
    await generateText({ model: provider(settings)(name), prompt, maxRetries: 0 });
  } catch (error) {
    const { statusCode, isRetryable, message } = error;
    return { name: error.name, statusCode, isRetryable, message };
  }
  return { name: null };
}

await run({
  async text() {
    const done = await generateText({ model, prompt: "Hello", system: "Be brief." });
    const { text, finishReason, usage } = done;
    return { text, finishReason, input: usage.inputTokens, output: usage.outputTokens };
  },

  async textStreamed() {
    const running = streamText({ model, prompt: "Hello" });
    const deltas = [];
    for await (const delta of running.textStream) deltas.push(delta);
    const usage = await running.usage;
    return { deltas, finish: await running.finishReason, output: usage.outputTokens };
  },

  async reasoning() {
    const done = await generateText({ model, prompt: "Think, then greet." });
    return { text: done.text, reasoning: done.reasoningText };
  },

  async tool() {
    const done = await generateText({ model, prompt: question, tools, stopWhen: stepCountIs(3) });
    return { text: done.text, finishes: done.steps.map((step) => step.finishReason) };
  },

  async toolStreamed() {
    const running = streamText({ model, prompt: question, tools, stopWhen: stepCountIs(3) });
    const kinds = new Set();
    for await (const part of running.fullStream) kinds.add(part.type);
    return { text: await running.text, kinds: [...kinds] };
  },

  async toolRequired() {
    const done = await generateText({ model, prompt: question, tools, toolChoice: "required" });
    return done.toolCalls.map((call) => [call.toolName, call.input]);
  },

  async object() {
    return (await generateObject({ model: structured, schema: Person, prompt: person })).object;
  },

  async objectWithoutSchema() {
    // Then the provider asks for `json_object` only, and the caller has to say what it wants.
    const prompt = `${person} Answer in JSON of this schema: ${JSON.stringify(z.toJSONSchema(Person))}`;
    return (await generateObject({ model, schema: Person, prompt })).object;
  },

  async objectStreamed() {
    const running = streamObject({ model: structured, schema: Person, prompt: person });
    for await (const _ of running.partialObjectStream);
    return await running.object;
  },

  async errors() {
    return {
      "no such key": await refusal({ apiKey: "sk-nobody" }, "default", "Hello"),
      "no such model": await refusal({}, "gpt-2", "Hello"),
      "rate limit": await refusal({}, "default", "Please fail: rate limit"),
      "server login": await refusal({}, "default", "Please fail: server login"),
    };
  },

  async retry() {
    const prompt = "Please fail once: bad gateway, dear Vercel";
    return (await generateText({ model, prompt, maxRetries: 2 })).text;
  },

  async cutStream() {
    const running = streamText({
      model,
      prompt: "Please fail: cut",
      maxRetries: 0,
      onError: () => {},
    });
    const kinds = [];
    for await (const part of running.fullStream) kinds.push(part.type);
    return kinds;
  },
});
