// What the pages do beyond links and forms: show changes when they happen, choose a span of time with the pointer,
// cancel a query, and upload files. Every page also works without it.
'use strict';

const main = document.getElementById('main');

// Shows the page of the server, part by part: a part that did not change keeps its focus and its scrolling.
async function refresh(url, signal) {
  const answer = await fetch(url, { signal, headers: { Accept: 'text/html' } });
  const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
  for (const part of page.querySelectorAll('main [id]')) {
    const old = document.getElementById(part.id);
    const isOuter = !part.parentElement.closest('main [id]:not(main)');
    if (isOuter && old && !old.isEqualNode(part) && !old.contains(document.activeElement)) old.replaceWith(part);
  }
  return answer;
}

// Changes.
if (main.dataset.events) {
  let events = null, timer = null, again = false, running = false;
  const update = async () => {
    timer = null;
    if (running) { again = true; return; }
    running = true;
    try { await refresh(location.href); } catch { /* The next event tries again. */ }
    running = false;
    if (again || isOld()) { again = false; changed(); }
  };
  // What takes long to compute is shown as it was, and again when it is computed.
  const isOld = () => document.querySelector('#old')?.dataset.old !== undefined;
  const changed = () => { timer ??= setTimeout(update, Number(main.dataset.every)); };
  // A page that nobody sees follows nothing: browsers allow few connections to a server.
  const follow = () => {
    events?.close();
    events = null;
    if (document.hidden) return;
    events = new EventSource(main.dataset.events);
    for (const kind of ['status', 'progress', 'report', 'diagnosis', 'resync', 'message']) events.addEventListener(kind, changed);
  };
  follow();
  if (isOld()) changed();
  document.addEventListener('visibilitychange', () => { follow(); if (!document.hidden) changed(); });
  addEventListener('pagehide', () => events?.close());
}

// A span of time: from the bar where the pointer goes down to the one where it goes up.
let from = null;
const bar = (event) => event.target.closest?.('[data-brush] a[data-since]');
const span = (one, other) => [one, other].sort((a, b) => a.dataset.since.localeCompare(b.dataset.since));
document.addEventListener('pointerdown', (event) => { from = event.button === 0 ? bar(event) : null; });
document.addEventListener('dragstart', (event) => { if (bar(event)) event.preventDefault(); });
document.addEventListener('pointerover', (event) => {
  const to = bar(event);
  if (!from || !to || from.parentNode !== to.parentNode) return;
  const [first, last] = span(from, to);
  for (const one of to.parentNode.querySelectorAll('a[data-since]')) {
    const at = one.dataset.since;
    one.classList.toggle('chosen', at >= first.dataset.since && at <= last.dataset.since);
  }
});
document.addEventListener('pointerup', (event) => {
  const to = bar(event), begun = from;
  from = null;
  if (!begun || !to || begun === to || begun.parentNode !== to.parentNode) return;
  const [first, last] = span(begun, to);
  const address = new URL(first.getAttribute('href'), location.href);
  address.searchParams.set('until', last.dataset.until);
  location.assign(address);
});

// Queries.
const query = document.querySelector('form[data-query]');
if (query) {
  const cancel = query.querySelector('[data-cancel]'), running = query.querySelector('[data-running]');
  let control = null;
  query.addEventListener('submit', async (event) => {
    event.preventDefault();
    control?.abort();
    const own = control = new AbortController();
    const address = new URL(query.action);
    address.searchParams.set('sql', query.elements.sql.value);
    const began = performance.now();
    const ticker = setInterval(() => { running.value = `${((performance.now() - began) / 1000).toFixed(1)} s`; }, 100);
    cancel.hidden = false;
    try {
      await refresh(address, own.signal);
      history.pushState(null, '', address);
      running.value = '';
    } catch (error) {
      running.value = error.name === 'AbortError' ? 'cancelled' : 'the server does not answer; try again';
    }
    clearInterval(ticker);
    if (control === own) { cancel.hidden = true; control = null; }
  });
  cancel.addEventListener('click', () => control?.abort());
  query.elements.sql.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) query.requestSubmit();
  });
  addEventListener('popstate', () => location.reload());
}

// Uploads.
const upload = document.querySelector('form[data-upload]');
if (upload) {
  const list = document.getElementById('uploads'), zone = upload.querySelector('.drop');
  let dropped = [], batch = null;
  const sent = new Set();
  const entriesOf = (entry) => new Promise((resolve, reject) => {
    if (entry.isFile) return entry.file((file) => resolve([[entry.fullPath.slice(1), file]]), reject);
    const reader = entry.createReader(), found = [];
    const next = () => reader.readEntries(async (entries) => {
      if (!entries.length) return resolve((await Promise.all(found.map(entriesOf))).flat());
      found.push(...entries);
      next();
    }, reject);
    next();
  });
  const say = (text) => { const line = document.createElement('p'); line.textContent = text; list.append(line); return line; };
  zone.addEventListener('dragover', (event) => { event.preventDefault(); zone.classList.add('over'); });
  zone.addEventListener('dragleave', () => zone.classList.remove('over'));
  zone.addEventListener('drop', async (event) => {
    event.preventDefault();
    zone.classList.remove('over');
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = entries.length ? (await Promise.all(entries.map(entriesOf))).flat() : [...event.dataTransfer.files].map((file) => [file.name, file]);
    dropped.push(...files);
    say(`${files.length} files dropped.`);
  });
  // Names have no folders: those below the chosen one become part of the name, as `argus upload` does it.
  const nameOf = (path) => path.replaceAll('/', '_').replaceAll('..', '_');
  const detail = async (answer) => (await answer.json().catch(() => ({}))).detail ?? `status ${answer.status}`;
  const put = (batch, path, file) => new Promise((resolve, reject) => {
    const line = say(`${path} `), bar = document.createElement('progress');
    bar.max = Math.max(file.size, 1);
    bar.setAttribute('aria-label', path);
    line.append(bar);
    const request = new XMLHttpRequest();
    // The files of an archive are taken one by one.
    if (/\.(zip|tgz|tar(\.(gz|zst|xz|bz2|lz4))?)$/i.test(path)) request.open('POST', `/api/v1/batches/${batch}/files`);
    else request.open('PUT', `/api/v1/batches/${batch}/files/${encodeURIComponent(nameOf(path))}`);
    request.upload.onprogress = (event) => { bar.value = event.loaded; };
    request.onload = () => {
      if (request.status < 300) { bar.value = bar.max; line.append(' done'); resolve(); return; }
      let why = `status ${request.status}`;
      try { why = JSON.parse(request.responseText).detail; } catch { /* Not a problem of the API. */ }
      line.append(` ${why}`);
      reject(new Error(`${path}: ${why}`));
    };
    request.onerror = () => reject(new Error(`${path}: the connection broke`));
    request.send(file);
  });
  upload.addEventListener('submit', async (event) => {
    event.preventDefault();
    const fields = upload.elements, button = upload.querySelector('button');
    const chosen = [...fields.files.files, ...fields.folder.files].map((file) => [file.webkitRelativePath.split('/').slice(1).join('/') || file.name, file]);
    const files = [...chosen, ...dropped], names = files.map(([path]) => nameOf(path));
    const twice = names.find((name, index) => names.indexOf(name) !== index);
    if (!files.length || twice) { say(twice ? `Two files are named ${twice}; upload one of them alone.` : 'Choose or drop files first.'); return; }
    button.disabled = true;
    try {
      const described = { vehicle_id: fields.vehicle_id.value, vin: fields.vin.value, expected_files: files.length };
      if (fields.firmware.value) described.firmware = fields.firmware.value;
      if (fields.platform.value) described.platform = fields.platform.value;
      const json = { 'Content-Type': 'application/json' };
      if (!batch) {
        const created = await fetch('/api/v1/batches', { method: 'POST', headers: json, body: JSON.stringify(described) });
        if (!created.ok) throw new Error(await detail(created));
        batch = (await created.json()).id;
      }
      // After a failure, the next try sends what is missing to the same batch.
      const waiting = files.filter(([path]) => !sent.has(nameOf(path)));
      const worker = async () => { for (let next; (next = waiting.shift());) { await put(batch, ...next); sent.add(nameOf(next[0])); } };
      await Promise.all([worker(), worker(), worker()]);
      const completed = await fetch(`/api/v1/batches/${batch}/complete`, { method: 'POST' });
      if (!completed.ok) throw new Error(await detail(completed));
      location.assign(`/batches/${batch}`);
    } catch (error) {
      say(error.message).setAttribute('role', 'alert');
      button.disabled = false;
    }
  });
}
