// The app around the page, in a browser: the page's files under the app's origin and policy, as
// `Page.java` serves them, and the app's host as a process. Runs in tests/demo/driver.mjs; `values` has
// `command`, `folder`, `origin`, `policy`, `types`, `models`.

const { spawn } = await import("node:child_process");
const { readFile } = await import("node:fs/promises");
const { createInterface } = await import("node:readline");
const { command, folder, origin, policy, types, models } = values;

const host = spawn(command[0], command.slice(1), { stdio: ["pipe", "pipe", "inherit"] });
globalThis.act = (what, value) => host.stdin.write(`${JSON.stringify({ [what]: value })}\n`);
globalThis.refused = [];
globalThis.end = () => new Promise((resolve) => { host.on("exit", resolve); host.stdin.end(); });
globalThis.act("choose", models);

await context.exposeFunction("postToApp", (text) => globalThis.act("post", text));
await context.addInitScript(() => { window.edgepack = { post: (text) => window.postToApp(text) }; });
createInterface({ input: host.stdout }).on("line", (line) => {
  if (JSON.parse(line).told) return;
  page.evaluate((text) => window.edgepackReceive?.(text), line).catch(() => {}); // no page just now
});

await context.route("**/*", async (route) => {
  const url = new URL(route.request().url());
  const type = types[url.pathname.split(".").pop()];
  try {
    if (url.origin !== origin || !type) throw new Error("not the page's");
    const body = await readFile(folder + url.pathname);
    const headers = { "content-type": `${type}; charset=utf-8`, "content-security-policy": policy };
    await route.fulfill({ body, headers });
  } catch {
    globalThis.refused.push(url.href);
    await route.fulfill({ status: 403, body: "" });
  }
});
await page.goto(`${origin}/index.html`);
