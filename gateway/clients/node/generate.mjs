// oscarkv from Node: an answer as it comes. The messages are made from the protos as it runs (@grpc/proto-loader): nothing is generated.
//   npm install @grpc/grpc-js @grpc/proto-loader
//   node generate.mjs HOST:PORT "The Wendigo is" [MAX_TOKENS]      a token of `oscarkv token new`: in the environment as OSCARKV_TOKEN
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);  // finds packages in NODE_PATH, too
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const proto = fileURLToPath(new URL('../../../proto', import.meta.url));
const definition = loader.loadSync('oscarkv/v1/gateway.proto', { includeDirs: [proto], keepCase: true, longs: Number, enums: String, defaults: true });
const { Gateway } = grpc.loadPackageDefinition(definition).oscarkv.v1;

const [target = '127.0.0.1:7400', prompt = 'The Wendigo is', maxTokens = '40'] = process.argv.slice(2);
const metadata = new grpc.Metadata();
if (process.env.OSCARKV_TOKEN) metadata.set('authorization', `Bearer ${process.env.OSCARKV_TOKEN}`);

// With TLS: grpc.credentials.createSsl(readFileSync('ca.crt')).
const client = new Gateway(target, grpc.credentials.createInsecure());
const stream = client.Generate({ prompt, max_tokens: Number(maxTokens) }, metadata, { deadline: Date.now() + 600_000 });
process.on('SIGINT', () => stream.cancel());  // the gateway stops decoding

let last;
stream.on('data', (message) => {
  process.stdout.write(message.text);
  last = message;
});
stream.on('end', () => {
  const { usage } = last;
  process.stderr.write(`\n${usage.prompt_tokens} prompt tokens, ${usage.cached_tokens} of them cached; ${usage.generated_tokens} generated; `
    + `first token after ${usage.ttft_us / 1000} ms; ${last.finish_reason}; request ${last.request_id}\n`);
});
stream.on('error', (error) => {
  process.stderr.write(`\n${grpc.status[error.code]}: ${error.details}\n`);
  process.exitCode = 1;
});
stream.on('close', () => client.close());
