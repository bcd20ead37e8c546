// The console in headless Chromium: node console_test.mjs BASE_URL CHROMIUM [FOLDER for screenshots]
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const { chromium } = createRequire(import.meta.url)('playwright-core');
const [base, executablePath, folder] = process.argv.slice(2);
const ask = (body) => fetch(`${base}/v1/completions`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) }).then((r) => r.json());

const browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu'] });
const sizes = { wide: { width: 1280, height: 900 }, narrow: { width: 390, height: 844 } };
try {
  const text = 'It was a dark night in the forest. '.repeat(300);
  // More than memory holds, so that blocks go to the disk.
  for (let i = 0; i < 8; ++i) await ask({ prompt: text.slice(11 * i, 11 * i + 8000), max_tokens: 4 });
  for (let i = 0; i < 8; ++i) await ask({ prompt: text.slice(0, 2000 * (1 + (i % 4))), max_tokens: 10 + i });
  for (const colorScheme of ['light', 'dark']) {
    for (const [name, viewport] of Object.entries(sizes)) {
      const page = await browser.newPage({ viewport, colorScheme, deviceScaleFactor: 1 });
      const problems = [];
      page.on('console', (m) => ['error', 'warning'].includes(m.type()) && problems.push(m.text()));
      page.on('pageerror', (e) => problems.push(`${e}`));
      page.on('request', (r) => r.url().startsWith(base) || problems.push(`request to ${r.url()}`));
      await page.goto(`${base}/`);
      await page.getByText('serving', { exact: true }).waitFor();
      assert.equal(await page.locator('.node').count(), 2);
      assert.match(await page.locator('#replication').innerText(), /^2 of 2 nodes up \(membership: static\) · 2 copies of each block$/);
      await page.locator('.node').first().getByText(/^[\d.]+ [KM]iB, [\d.]+ % on disk$/).waitFor();
      assert.match(await page.locator('#requests .phases').first().getAttribute('title'), /in prefill .*\(queue .*, compute .*\).*loading for decoding .*\(queue .*, recompute .*\)/);
      assert.match(await page.locator('#tiles').innerText(), /Compression\s+7\.\d+×/);
      assert.ok(await page.locator('#ttft rect').count() > 0);
      assert.ok(await page.locator('#requests tbody tr').count() >= 8);
      // By keyboard alone: to the prompt by the first link, type, send.
      await page.keyboard.press('Tab');
      assert.equal(await page.evaluate(() => document.activeElement.className), 'skip');
      await page.keyboard.press('Enter');
      await page.keyboard.press('Tab');
      assert.equal(await page.evaluate(() => document.activeElement.id), 'prompt');
      await page.keyboard.press('Control+A');
      await page.keyboard.type('He said <b>nothing</b> and');
      await page.locator('#max-tokens').fill('24');
      await page.locator('#prompt').press('Control+Enter');
      await page.getByText(/^24 tokens · first after .* KV .* instead of /).waitFor();
      const answer = await page.locator('#answer').innerText();
      assert.ok(answer.startsWith('He said <b>nothing</b> and') && answer.length > 40, answer);
      assert.equal(await page.locator('#answer b').count(), 0, 'text is not markup');
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.equal(overflow, 0, `the page is ${overflow} px wider than the window`);
      await page.locator('#max-tokens').fill('99999');
      await page.locator('#send').evaluate((b) => b.form.noValidate = true);
      await page.locator('#send').click();
      await page.getByText(/^failed: max_tokens 99999/).waitFor();
      assert.deepEqual(problems.filter((p) => !p.includes('400 (Bad Request)')), []);
      await page.locator('#max-tokens').fill('24');
      await page.locator('#prompt').press('Control+Enter');
      await page.getByText(/^24 tokens/).waitFor();
      await page.evaluate(() => { document.activeElement.blur(); window.scrollTo(0, 0); });
      if (folder) await page.screenshot({ path: `${folder}/console-${name}-${colorScheme}.png` });
      await page.close();
      console.log(`ok: ${name}, ${colorScheme}`);
    }
  }
  // What is wrong is said.
  const status = await fetch(`${base}/api/status`).then((r) => r.json());
  status.nodes[0].under_replicated_blocks = 1234;
  Object.assign(status.nodes[1], { reachable: false, error: 'no answer' });
  status.store.copies_now = 1;
  Object.assign(status.workers.find((w) => w.role === 'attention'), { usable: false, error: 'another model' });
  const page = await browser.newPage({ viewport: sizes.wide });
  await page.route('**/api/status', (route) => route.fulfill({ json: status }));
  await page.goto(`${base}/`);
  await page.getByText('2 down', { exact: true }).waitFor();
  assert.equal(await page.locator('#replication').innerText(),
    '1 of 2 nodes up (membership: static) · 2 copies of each block · new blocks get 1 copy only · of 1,234 blocks a copy is missing');
  await page.locator('.node').nth(1).getByText('no answer').waitFor();
  await page.locator('#workers').getByText('another model').waitFor();
  if (folder) await page.screenshot({ path: `${folder}/console-trouble.png` });
  console.log('ok: trouble');
} finally {
  await browser.close();
}
