// The openai package against a running gateway: node openai_test.mjs BASE_URL MODEL
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const OpenAI = createRequire(import.meta.url)('openai').OpenAI ?? createRequire(import.meta.url)('openai');
const [base, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: 'unused', maxRetries: 0 });
const messages = [{ role: 'system', content: 'Brief.' }, { role: 'user', content: 'Who was it?' }];

const cases = {
  async models() {
    const list = await client.models.list();
    assert.deepEqual(list.data.map((m) => m.id), [model]);
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  async completions() {
    const fields = { model, prompt: 'The Wendigo is', max_tokens: 12, temperature: 0 };
    const whole = await client.completions.create({ ...fields, logprobs: 1 });
    assert.equal(whole.choices[0].finish_reason, 'length');
    assert.equal(whole.usage.completion_tokens, 12);
    assert.equal(whole.choices[0].logprobs.tokens.length, 12);
    let text = '';
    for await (const chunk of await client.completions.create({ ...fields, stream: true })) text += chunk.choices[0].text;
    assert.equal(text, whole.choices[0].text);
  },
  async chats() {
    const fields = { model, messages, max_completion_tokens: 12, temperature: 0.8, seed: 5 };
    const whole = await client.chat.completions.create({ ...fields, logprobs: true, top_logprobs: 2 });
    assert.equal(whole.choices[0].logprobs.content.length, whole.usage.completion_tokens);
    assert.equal(whole.choices[0].logprobs.content[0].top_logprobs.length, 2);
    const stream = await client.chat.completions.create({ ...fields, stream: true, stream_options: { include_usage: true } });
    let text = '';
    let usage;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.total_tokens, whole.usage.total_tokens);
    assert.equal(typeof usage.prompt_tokens_details.cached_tokens, 'number');
  },
  async 'the helper that gathers a stream'() {
    const runner = client.chat.completions.stream({ model, messages, max_tokens: 6, seed: 1 });
    const final = await runner.finalChatCompletion();
    assert.ok(['length', 'stop'].includes(final.choices[0].finish_reason));
  },
  async errors() {
    const refused = async (promise, kind, status, param) => {
      const error = await promise.then(() => assert.fail('it was not refused'), (e) => e);
      assert.ok(error instanceof kind, `${error}`);
      assert.equal(error.status, status);
      assert.equal(error.param, param);
    };
    await refused(client.chat.completions.create({ model: 'gpt-9', messages }), OpenAI.NotFoundError, 404, 'model');
    await refused(client.chat.completions.create({ model, messages, n: 2 }), OpenAI.BadRequestError, 400, 'n');
    await refused(client.completions.create({ model, prompt: 'x', temperature: -1 }), OpenAI.BadRequestError, 400, null);
    await refused(client.completions.create({ model, prompt: 'x', max_tokens: 99999, stream: true }), OpenAI.BadRequestError, 400, null);
  },
  async 'an abort stops the answer'() {
    const stream = await client.completions.create({ model, prompt: 'x', max_tokens: 20000, stream: true, ignore_eos: true });
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      stream.controller.abort();
      break;
    }
    const idle = async () => / 0\n/.test((await (await fetch(`${base}/metrics`)).text()).match(/^oscarkv_gateway_running_requests [^\n]*\n/m)[0]);
    for (let i = 0; !(await idle()); ++i) {
      assert.ok(i < 200, 'the answer goes on');
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  },
};
for (const [name, run] of Object.entries(cases)) {
  await run();
  console.log(`ok: ${name}`);
}
