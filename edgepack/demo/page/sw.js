// The service worker: all files of one version of the page, from a cache of that version. `edgepack demo
// --web` writes the next line.
const PAGE = { version: "unbuilt", files: [], later: [] };

const CACHE = `edgepack-page-${PAGE.version}`;
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};
const root = new URL("./", self.location.href);
const addressOf = (path) => new URL(path, root).href;
const known = new Map([...PAGE.files, ...PAGE.later].map(({ path, sha256 }) => [addressOf(path), sha256]));

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  const address = new URL(event.request.url);
  if (address.origin !== root.origin) return;
  address.search = address.hash = "";
  if (address.href === root.href) address.pathname += "index.html";
  event.respondWith(answer(event.request, address.href));
});
self.addEventListener("message", (event) => {
  if (event.data === "begin") event.waitUntil(begin(event.ports[0]));
});

/** Fetch what this version consists of. A file that is not of this version (a server in the middle of an
 * update) ends it; the browser tries again later. */
async function install() {
  const cache = await caches.open(CACHE);
  for (const { path } of PAGE.files) {
    const address = addressOf(path);
    if (!(await cache.match(address))) await keep(cache, address);
  }
}

async function keep(cache, address) {
  const response = await fetch(address, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${address}: ${response.status}`);
  const body = await response.arrayBuffer();
  if (await digest(body) !== known.get(address)) throw new Error(`${address}: is of another version`);
  const headers = { "Content-Type": response.headers.get("Content-Type") ?? "application/octet-stream" };
  await cache.put(address, new Response(body, { headers }));
}

async function digest(body) {
  const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", body));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Older versions go, once no page uses them. */
async function activate() {
  for (const name of await caches.keys()) {
    if (name.startsWith("edgepack-page-") && name !== CACHE) await caches.delete(name);
  }
  await self.clients.claim();
}

/** A page asks for its newer version: only if it is the only one. */
async function begin(port) {
  const pages = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
  const alone = pages.length <= 1;
  port.postMessage(alone);
  if (alone) await self.skipWaiting();
}

/** A file of the page from the cache; anything else (parts of models) from the network. */
async function answer(request, address) {
  if (!known.has(address)) return isolated(await fetch(request));
  const cache = await caches.open(CACHE);
  let found = await cache.match(address);
  if (!found) {
    await keep(cache, address);
    found = await cache.match(address);
  }
  return isolated(found);
}

function isolated(response) {
  if (response.type === "opaque" || response.status === 0) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  const body = [101, 204, 205, 304].includes(response.status) ? null : response.body;
  return new Response(body, { status: response.status, statusText: response.statusText, headers });
}
