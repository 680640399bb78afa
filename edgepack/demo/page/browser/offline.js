// The page without a network: its service worker (sw.js) keeps all files of one version of it.

const RELOADED = "edgepack.reloaded";
const PATIENCE = 20000;

/** Set the service worker up. Where the server sends no headers for isolation, the worker adds them, and the
 * page is loaded once more for them to count. A newer version takes over before anything is loaded, if this
 * is the only tab. */
export async function offline() {
  if (!("serviceWorker" in navigator)) return;
  const known = await navigator.serviceWorker.getRegistration().catch(() => null);
  if (known?.waiting && await takeOver(known.waiting)) return forever();
  const registration = await navigator.serviceWorker.register(new URL("../sw.js", import.meta.url)).catch((error) => {
    console.warn("no service worker:", error.message);
    return null;
  });
  if (!registration) return;
  if (globalThis.crossOriginIsolated) {
    sessionStorage.removeItem(RELOADED);
    return;
  }
  if (sessionStorage.getItem(RELOADED)) return; // it did not help: the page runs with one thread
  const active = await Promise.race([navigator.serviceWorker.ready, wait(PATIENCE)]);
  if (!active) return;
  sessionStorage.setItem(RELOADED, "1");
  location.reload();
  await forever();
}

/** Ask a waiting version to begin; resolves to false where another tab has the old one open. */
async function takeOver(waiting) {
  const channel = new MessageChannel();
  const answer = new Promise((resolve) => { channel.port1.onmessage = ({ data }) => resolve(data); });
  const changed = new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true }));
  waiting.postMessage("begin", [channel.port2]);
  if (await Promise.race([answer, wait(2000)]) !== true) return false;
  await Promise.race([changed, wait(5000)]);
  location.reload();
  return true;
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds, null));
const forever = () => new Promise(() => {});
