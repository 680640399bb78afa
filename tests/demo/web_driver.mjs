// A headless Chromium that Python drives: commands come as JSON lines, each gets one JSON line back.
// node web_driver.mjs PLAYWRIGHT CHROMIUM PROFILE
//
// {goto: address}              open a page; resolves when its host answers
// {start: request}             send a request to the host
// {wait: id, until: [events]}  all events of a request so far, once one of those has come
// {evaluate: text}             the value of an expression in the page
// {choose: [paths]}            answer the next choice of files
// {save: path}                 keep the next download there
import { createRequire } from "node:module";
import path from "node:path";
import readline from "node:readline";

const [modules, executablePath, profile] = process.argv.slice(2);
const { chromium, devices } = createRequire(path.join(path.resolve(modules), "x.js"))("playwright-core");
const context = await chromium.launchPersistentContext(profile, {
  executablePath, ...devices["Pixel 7"], args: ["--no-sandbox"], serviceWorkers: "allow",
});
const page = context.pages()[0] ?? (await context.newPage());
page.setDefaultTimeout(400000);
const said = [];
page.on("console", (message) => said.push(`${message.type()}: ${message.text()}`));
page.on("pageerror", (error) => said.push(`error: ${error.message}`));

/** Connect with the host a second time, beside the page's own client. */
const hosted = async () => {
  globalThis.events = [];
  const { connect } = await import("./host-browser.js");
  globalThis.host = await connect((event) => globalThis.events.push(event));
};

const commands = {
  async goto({ goto }) {
    await page.goto(goto);
    for (let tries = 0; ; tries += 1) {
      try {
        await page.evaluate(hosted);
        return page.evaluate("crossOriginIsolated");
      } catch (error) {
        if (tries === 20 || !/navigation|destroyed/.test(error.message)) throw error;
        await page.waitForLoadState(); // the page has loaded itself once more
      }
    }
  },
  start: ({ start }) => page.evaluate((request) => { globalThis.host.post(request); }, start),
  async wait({ wait, until }) {
    const has = ([id, names]) => globalThis.events.some((event) => event.id === id && names.includes(event.event));
    await page.waitForFunction(has, [wait, until], { polling: 200 });
    return page.evaluate((id) => globalThis.events.filter((event) => event.id === id), wait);
  },
  evaluate: ({ evaluate }) => page.evaluate(evaluate),
  async choose({ choose }) {
    page.once("filechooser", (chooser) => chooser.setFiles(choose));
  },
  said: () => said,
  async save({ save }) {
    page.once("download", (download) => download.saveAs(save));
  },
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  const name = Object.keys(command).find((key) => key in commands);
  try {
    console.log(JSON.stringify({ value: (await commands[name](command)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: error.message, said: said.slice(-20) }));
  }
}
await context.close();
