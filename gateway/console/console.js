// The console: asks /api/status once a second and draws it; sends prompts to /v1/completions. All text from the cluster goes
// through textContent, so that nothing in it is markup.
const $ = (id) => document.getElementById(id);
const PERIOD_MS = 1000;

let token = sessionStorage.getItem('oscarkv-token') ?? '';
const headers = (more) => ({ ...more, ...(token ? { Authorization: `Bearer ${token}` } : {}) });

function element(tag, properties = {}, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === 'class') e.className = value;
    else if (name === 'width') e.style.width = value;
    else e.setAttribute(name, value);
  }
  e.append(...children);
  return e;
}

function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; ++i) n /= 1024;
  return `${n.toFixed(i === 0 || n >= 100 ? 0 : n >= 10 ? 1 : 2)} ${units[i]}`;
}
const count = (n) => Math.round(n).toLocaleString('en');
function time(ms) {
  if (ms >= 60000) return `${(ms / 60000).toFixed(1)} min`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms >= 10000 ? 1 : 2)} s`;
  return `${ms.toFixed(ms >= 100 ? 0 : ms >= 1 ? 1 : 2)} ms`;
}
const percent = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : '–');

function tile(name, value, sub) {
  return element('dl', { class: 'tile' }, element('dt', {}, name), element('dd', { class: 'value' }, value), element('dd', { class: 'sub' }, sub));
}

function drawTiles(s, ratio) {
  const sum = (field) => s.nodes.reduce((n, node) => n + (node.reachable ? node[field] : 0), 0);
  const pages = sum('page_bytes');
  const others = sum('bf16_bytes') + sum('handover_bytes');
  $('tiles').replaceChildren(
    tile('KV stored', bytes(pages + others), `of ${bytes(sum('capacity_bytes'))} on ${s.nodes.length} node${s.nodes.length === 1 ? '' : 's'}`),
    tile('The same in bf16', bytes(pages * ratio + others), pages > 0 ? `${((pages * ratio + others) / (pages + others)).toFixed(2)} times as much` : 'nothing stored yet'),
    tile('Compression', ratio > 1 ? `${ratio.toFixed(2)}×` : '–', `a token: ${bytes(s.model.kv_bytes_per_token_stored)} for ${bytes(s.model.kv_bytes_per_token_bf16)}`),
    tile('Hit rate', percent(s.tokens.cached, s.tokens.prompt), `${count(s.tokens.cached)} of ${count(s.tokens.prompt)} prompt tokens`),
    tile('Requests', `${s.requests.running}`, `running; ${s.requests.waiting} waiting, ${count(s.requests.total)} in all`),
    tile('First token', s.ttft_seconds.p50 > 0 ? time(s.ttft_seconds.p50 * 1000) : '–', `median; 95 %: ${time(s.ttft_seconds.p95 * 1000)}`),
  );
}

// A node's tier on disk, on a scale of its own: disks are many times larger than memory.
function drawDisk(ssd, fact) {
  if (!ssd) return [];
  const width = `${Math.min(100, (100 * ssd.used_bytes) / ssd.capacity_bytes)}%`;
  const label = `on disk: ${bytes(ssd.used_bytes)} of ${bytes(ssd.capacity_bytes)}`;
  return [
    element('div', { class: 'bar thin', role: 'img', 'aria-label': label }, element('span', { class: 'k-ssd', width })),
    element('div', { class: 'facts' }, fact('on disk', `${bytes(ssd.used_bytes)}, ${percent(ssd.used_bytes, ssd.capacity_bytes)}`), fact('blocks', count(ssd.blocks)),
      fact('came back', count(ssd.promoted_blocks)), fact('not taken', count(ssd.dropped_blocks)),
      ...(ssd.corrupt_blocks > 0 ? [element('span', { class: 'err' }, `${count(ssd.corrupt_blocks)} corrupt`)] : []),
      ...(ssd.writable ? [] : [element('span', { class: 'err' }, 'disk error: nothing is written for a while')])),
  ];
}

function drawReplication(s) {
  const up = s.nodes.filter((n) => n.reachable).length;
  const line = $('replication');
  if (!s.store) return void line.replaceChildren();
  const { replicas, copies_now: now, membership, membership_error: error } = s.store;
  const copies = (n) => `${n} ${n === 1 ? 'copy' : 'copies'}`;
  line.replaceChildren(`${up} of ${s.nodes.length} nodes up (membership: ${membership}) · ${copies(replicas)} of each block`);
  if (now < replicas) line.append(' · ', element('span', { class: 'err' }, now > 0 ? `new blocks get ${copies(now)} only` : 'no node takes new blocks'));
  const under = s.nodes.reduce((sum, n) => sum + (n.reachable ? n.under_replicated_blocks : 0), 0);
  if (under > 0) line.append(' · ', element('span', { class: 'err' }, `of ${count(under)} blocks a copy is missing`));
  if (error) line.append(' · ', element('span', { class: 'err' }, `the list of nodes is an old one: ${error}`));
}

function drawNodes(s, ratio) {
  // One scale for all bars: what is stored and what it would take stand beside each other.
  const equivalent = (n) => n.page_bytes * ratio + n.bf16_bytes + n.handover_bytes;
  const scale = Math.max(1, ...s.nodes.map((n) => Math.max(n.used_bytes, equivalent(n))));
  const part = (kind, n) => element('span', { class: `k-${kind}`, width: `${(100 * n) / scale}%` });
  const fact = (name, value) => element('span', {}, element('b', {}, value), ` ${name}`);
  $('nodes').replaceChildren(...s.nodes.map((n) => {
    const state = !n.reachable ? element('span', { class: 'err' }, `down: ${n.error}`) : n.draining ? 'draining' : element('span', { class: 'ok' }, 'up');
    const name = element('div', {}, element('div', { class: 'name' }, n.endpoint), element('div', { class: 'soft' }, state, n.zone ? ` · zone ${n.zone}` : ''));
    if (!n.reachable) return element('div', { class: 'node' }, name, element('div', {}));
    const label = `${bytes(n.used_bytes)} stored of ${bytes(n.capacity_bytes)}; in bf16 it would be ${bytes(equivalent(n))}`;
    return element('div', { class: 'node' }, name, element('div', { class: 'bars' },
      element('div', { class: 'bar', role: 'img', 'aria-label': label }, part('page', n.page_bytes), part('handover', n.handover_bytes), part('bf16', n.bf16_bytes)),
      element('div', { class: 'bar thin', 'aria-hidden': 'true' }, part('equal', equivalent(n))),
      element('div', { class: 'facts' }, fact('used', `${bytes(n.used_bytes)}, ${percent(n.used_bytes, n.capacity_bytes)}`), fact('in bf16', bytes(equivalent(n))),
        fact('2-bit blocks', count(n.page_blocks)), fact('pinned', bytes(n.pinned_bytes)), fact('hits', percent(n.hits, n.hits + n.misses)), fact('evictions', count(n.evictions))),
      ...drawDisk(n.ssd, fact)));
  }));
  $('legend-ssd').hidden = !s.nodes.some((n) => n.ssd);
  drawReplication(s);
  if (s.nodes.length === 0) $('nodes').replaceChildren(element('p', { class: 'soft' }, 'no KV node is known'));
}

const SVG = 'http://www.w3.org/2000/svg';
function svg(tag, attributes, ...children) {
  const e = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

function drawHistogram(id, h) {
  const total = h.counts.reduce((a, b) => a + b, 0);
  $(`${id}-text`).textContent = total > 0 ? `${count(total)} answers · median ${time(h.p50 * 1000)} · 95 % ${time(h.p95 * 1000)}` : '';
  if (total === 0) return void $(id).replaceChildren(element('p', { class: 'soft' }, 'no answers yet'));
  const used = h.counts.flatMap((n, i) => (n > 0 ? [i] : []));
  const first = Math.max(0, used[0] - 1);
  const last = Math.min(h.counts.length - 1, Math.max(used.at(-1) + 1, first + 7));
  const [width, height, base] = [520, 120, 98];
  const step = width / (last - first + 1);
  const most = Math.max(...h.counts);
  const marks = [svg('line', { x1: 0, x2: width, y1: base + 0.5, y2: base + 0.5 })];
  for (let i = first; i <= last; ++i) {
    const tall = h.counts[i] > 0 ? Math.max(2, (base - 16) * (h.counts[i] / most)) : 0;
    const x = (i - first) * step;
    const upTo = i < h.bounds.length ? `up to ${time(h.bounds[i] * 1000)}` : 'longer';
    marks.push(svg('rect', { x: x + 2, y: base - tall, width: Math.max(1, step - 4), height: tall, rx: 2 }, svg('title', {}, `${upTo}: ${h.counts[i]}`)));
    if (h.counts[i] > 0 && step > 24) {
      const text = svg('text', { x: x + step / 2, y: base - tall - 4, 'text-anchor': 'middle' });
      text.textContent = h.counts[i];
      marks.push(text);
    }
    if (i < h.bounds.length && (i - first) % Math.ceil(70 / step) === 0) {
      const text = svg('text', { x: x + step, y: height - 6, 'text-anchor': i === last ? 'end' : 'middle' });
      text.textContent = `≤ ${time(h.bounds[i] * 1000)}`;
      marks.push(text);
    }
  }
  const label = `${id.toUpperCase()}: median ${time(h.p50 * 1000)}, 95 % below ${time(h.p95 * 1000)}, ${total} answers`;
  $(id).replaceChildren(svg('svg', { class: 'chart', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label }, ...marks));
}

function cell(label, content, kind = '') {
  return element('td', { 'data-label': label, class: kind }, content);
}

function table(columns, rows) {
  return element('table', {}, element('thead', {}, element('tr', {}, ...columns.map(([name, kind]) => element('th', { class: kind ?? '', scope: 'col' }, name)))),
    element('tbody', {}, ...rows.map((row) => element('tr', {}, ...row.map((content, i) => cell(columns[i][0], content, columns[i][1]))))));
}

// A request's phases as one bar; the same words in its title.
const KINDS = [['tokenising', 0], ['waiting', 1], ['asking', 2], ['prefill', 3], ['loading', 5], ['decoding', 4]];
function phases(r) {
  const parts = (p) => (p.parts.length > 0 ? ` (${p.parts.map((part) => `${part.name} ${time(part.ms)}`).join(', ')})` : '');
  const words = r.phases.map((p) => `${p.name} ${time(p.ms)}${parts(p)}`).join(', ');
  const bar = element('span', { class: 'phases', role: 'img', title: words, 'aria-label': words });
  for (const p of r.phases) {
    const kind = KINDS.find(([word]) => p.name.includes(word))?.[1] ?? 4;
    bar.append(element('span', { class: `p${kind}`, width: `${(100 * p.ms) / Math.max(r.ms, 0.001)}%` }));
  }
  return bar;
}

function drawRequests(s) {
  const { in_flight: running, latest } = s.requests;
  $('flight-text').textContent = running.length > 0 ? `${running.length} under way` : 'none under way';
  const rows = [...running, ...latest].slice(0, 10).map((r) => [
    r.request_id,
    r.ended ? element('span', { class: r.code === 'OK' ? 'ok' : 'err', title: r.error }, r.code) : element('span', { class: 'pill' }, r.phases.at(-1).name),
    phases(r), time(r.ms), `${count(r.prompt_tokens)} (${count(r.cached_tokens)})`, count(r.tokens), r.lanes.join(', ') || '–']);
  const columns = [['Request', 'full'], ['State'], ['Phases', 'full'], ['Time', 'num'], ['Prompt (cached)', 'num'], ['Answer', 'num'], ['Lanes']];
  $('requests').replaceChildren(rows.length > 0 ? table(columns, rows) : element('p', { class: 'soft' }, 'no requests yet: try a prompt below'));
}

function drawWorkers(s) {
  const rows = s.workers.map((w) => [
    w.endpoint, w.role, w.usable ? element('span', { class: 'ok' }, 'up') : element('span', { class: 'err' }, w.error),
    w.profile ? `${w.profile}${w.data_free ? ' (data-free)' : ''}` : '–', count(w.running), count(w.waiting),
    w.pool_pages > 0 ? `${count(w.pool_pages_free)} of ${count(w.pool_pages)}` : '–']);
  const columns = [['Worker', 'full'], ['Role'], ['State'], ['Profile'], ['Running', 'num'], ['Waiting', 'num'], ['Pages free', 'num']];
  $('workers').replaceChildren(table(columns, rows));
  const lanes = new Set(s.requests.latest.flatMap((r) => r.lanes));
  $('lanes').textContent = lanes.size > 0 ? `lanes of the latest answers: ${[...lanes].join(', ')}` : '';
}

function say(kind, text) {
  $('state').className = `state ${kind}`;
  if ($('state-text').textContent !== text) $('state-text').textContent = text;
}

function draw(s) {
  const { model } = s;
  const ratio = model.kv_bytes_per_token_stored > 0 ? model.kv_bytes_per_token_bf16 / model.kv_bytes_per_token_stored : 1;
  $('model').textContent = [model.name, model.codec, `context ${count(model.max_context)}`].filter(Boolean).join(' · ');
  const down = [...s.nodes.filter((n) => !n.reachable), ...s.workers.filter((w) => !w.usable)].length;
  const serving = ['prefill', 'attention'].every((role) => s.workers.some((w) => w.role === role && w.usable));
  say(!serving ? 'bad' : down > 0 ? 'bad' : 'good', !serving ? 'not serving' : down > 0 ? `${down} down` : 'serving');
  drawTiles(s, ratio);
  drawNodes(s, ratio);
  drawHistogram('ttft', s.ttft_seconds);
  drawHistogram('tpot', s.tpot_seconds);
  drawRequests(s);
  drawWorkers(s);
}

async function poll() {
  try {
    const response = await fetch('/api/status', { headers: headers(), signal: AbortSignal.timeout(5000) });
    $('login').hidden = response.status !== 401 && response.status !== 403;
    if (response.ok) draw(await response.json());
    else say('bad', response.status === 401 ? 'token needed' : response.status === 403 ? 'not an operator' : `gateway says ${response.status}`);
  } catch {
    say('bad', 'gateway does not answer');
  }
  setTimeout(poll, document.hidden ? 5 * PERIOD_MS : PERIOD_MS);
}

// The events of a stream of server-sent events, as objects, until [DONE].
async function* events(body) {
  let text = '';
  for await (const piece of body.pipeThrough(new TextDecoderStream())) {
    text += piece;
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const data = text.slice(0, end).replace(/^data: /, '');
      text = text.slice(end + 2);
      if (data === '[DONE]') return;
      yield JSON.parse(data);
    }
  }
}

let abort = null;
async function send(event) {
  event.preventDefault();
  if (abort) return;
  abort = new AbortController();
  const prompt = $('prompt').value;
  const answer = document.createTextNode('');
  $('answer').replaceChildren(element('span', { class: 'given' }, prompt), answer);
  $('send').disabled = true;
  $('stop').disabled = false;
  $('answer-note').textContent = 'waiting for the first token';
  try {
    const response = await fetch('/v1/completions', {
      method: 'POST', headers: headers({ 'Content-Type': 'application/json' }), signal: abort.signal,
      body: JSON.stringify({ prompt, max_tokens: Number($('max-tokens').value), temperature: Number($('temperature').value), stream: true, stream_options: { include_usage: true } }) });
    if (!response.ok) throw new Error((await response.json()).error.message);
    let details = null;
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      answer.data += chunk.choices[0]?.text ?? '';
      details = chunk.oscarkv ?? details;
      $('answer-note').textContent = 'answering';
      if (chunk.usage && details) {
        const u = chunk.usage;
        $('answer-note').textContent = `${count(u.completion_tokens)} tokens · first after ${time(details.ttft_ms)}, then ${time(details.tpot_ms)} each · `
          + `${count(u.prompt_tokens_details.cached_tokens)} of ${count(u.prompt_tokens)} prompt tokens cached · KV ${bytes(details.kv_bytes_stored)} instead of ${bytes(details.kv_bytes_bf16)}`;
      }
    }
  } catch (error) {
    $('answer-note').textContent = error.name === 'AbortError' ? 'stopped' : `failed: ${error.message}`;
  }
  abort = null;
  $('send').disabled = false;
  $('stop').disabled = true;
}

$('prompt-form').addEventListener('submit', send);
$('prompt').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) send(event);
});
$('stop').addEventListener('click', () => abort?.abort());
$('login').addEventListener('submit', (event) => {
  event.preventDefault();
  token = $('token').value.trim();
  sessionStorage.setItem('oscarkv-token', token);
  $('token').value = '';
});
poll();
