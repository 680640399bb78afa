// What this browser can do, in words.

/** Calls that wait inside wasm (JSPI), and memories of more than 4 GB: wllama's own build needs both; where they
 * are missing it takes a slower one. */
export const hasJspi = () => "Suspending" in WebAssembly;

export function hasMemory64() {
  try {
    return Boolean(new WebAssembly.Memory({ address: "i64", initial: 1n }));
  } catch {
    return false;
  }
}

/** A module with one instruction of 128 bits. */
const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
]);

const HINT = "use a current Chrome, Edge or Firefox";

/** Why nothing can be computed here, as {message, hint}; null if it can. */
export function cannotChat() {
  if (!globalThis.WebAssembly?.validate(SIMD)) return { message: "this browser has no WebAssembly with SIMD", hint: HINT };
  return null;
}

/** Why no file can be kept here; null if it can. */
export function cannotKeep() {
  if (!globalThis.isSecureContext) return { message: "this page came without encryption", hint: "open it by https, or from this machine (localhost)" };
  if (!navigator.storage?.getDirectory) return { message: "this browser keeps no files for pages", hint: `${HINT}, in a window that is not private` };
  return null;
}

/** Threads that are used if nobody says: all cores but one, and one where the page is not isolated. */
export function fastThreads() {
  if (!globalThis.crossOriginIsolated) return 1;
  return Math.max(1, Math.min(8, (navigator.hardwareConcurrency || 2) - 1));
}
