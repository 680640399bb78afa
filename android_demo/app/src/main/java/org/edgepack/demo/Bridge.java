package org.edgepack.demo;

import android.os.Handler;
import android.os.Looper;
import android.webkit.JavascriptInterface;
import android.webkit.WebView;
import java.util.ArrayList;
import java.util.List;
import org.edgepack.host.Host;
import org.edgepack.host.Json;

/** The page's `window.edgepack`: requests come by `post`, events go to `edgepackReceive` in order,
 *  all that have gathered in one call. */
final class Bridge {
    static final String NAME = "edgepack";

    private final Host host;
    private final WebView view;
    private final Handler main = new Handler(Looper.getMainLooper());
    private final List<String> waiting = new ArrayList<String>();
    private boolean listens, isCalled;

    Bridge(Host host, WebView view) {
        this.host = host;
        this.view = view;
    }

    /** Called by the page, on a thread of the WebView. */
    @JavascriptInterface
    public void post(final String request) {
        host.post(request);
        main.post(new Runnable() {
            @Override
            public void run() {
                listens = true;  // whoever asks can hear
                call();
            }
        });
    }

    /** Give an event to the page; on the main thread. */
    void receive(String event) {
        waiting.add(event);
        call();
    }

    /** The page is loaded anew: what the one before was to hear is dropped. */
    void reset() {
        listens = false;
        waiting.clear();
    }

    private void call() {
        if (!listens || isCalled || waiting.isEmpty()) return;
        isCalled = true;
        main.post(new Runnable() {
            @Override
            public void run() {
                isCalled = false;
                StringBuilder script = new StringBuilder();
                for (String event : waiting) {
                    script.append("edgepackReceive(").append(Json.write(event)).append(");");
                }
                waiting.clear();
                view.evaluateJavascript(script.toString(), null);
            }
        });
    }
}
