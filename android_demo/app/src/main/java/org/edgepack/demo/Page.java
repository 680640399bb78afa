package org.edgepack.demo;

import android.content.res.AssetManager;
import android.graphics.Bitmap;
import android.net.Uri;
import android.webkit.RenderProcessGoneDetail;
import android.webkit.WebResourceRequest;
import android.webkit.WebResourceResponse;
import android.webkit.WebView;
import android.webkit.WebViewClient;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.HashMap;
import java.util.Map;

/**
 * Serves the page out of the app to the WebView, and nothing else. It has an origin of https, so that
 * modules and storage work, of a name that no network has (RFC 2606).
 */
final class Page extends WebViewClient {
    static final String HOST = "edgepack.invalid";
    static final String START = "https://" + HOST + "/index.html";
    private static final String POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; "
            + "img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
            + "worker-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    private static final String[] TYPES = {
        "html", "text/html", "js", "text/javascript", "css", "text/css", "json", "application/json",
        "svg", "image/svg+xml", "png", "image/png", "woff2", "font/woff2",
        "webmanifest", "application/manifest+json",
    };

    private final AssetManager assets;
    private final MainActivity activity;
    private boolean isStarted;

    Page(MainActivity activity) {
        this.activity = activity;
        this.assets = activity.getAssets();
    }

    @Override
    public WebResourceResponse shouldInterceptRequest(WebView view, WebResourceRequest request) {
        Uri uri = request.getUrl();
        String path = uri.getPath() == null ? "" : uri.getPath().replaceFirst("^/", "");
        boolean ours = "https".equals(uri.getScheme()) && HOST.equals(uri.getAuthority())
                && "GET".equals(request.getMethod());
        String type = type(path);
        if (!ours || type == null) return refusal();
        try {
            return response(200, "OK", type, assets.open(path));
        } catch (IOException missing) {
            return refusal();
        }
    }

    private static WebResourceResponse refusal() {
        return response(403, "Forbidden", "text/plain", new ByteArrayInputStream(new byte[0]));
    }

    private static WebResourceResponse response(int code, String why, String type, InputStream in) {
        Map<String, String> headers = new HashMap<String, String>();
        headers.put("Content-Security-Policy", POLICY);
        headers.put("X-Content-Type-Options", "nosniff");
        headers.put("Referrer-Policy", "no-referrer");
        headers.put("Cache-Control", "no-store");
        return new WebResourceResponse(type, "utf-8", code, why, headers, in);
    }

    /** The type of a file by the end of its name; null for what is no part of the page. */
    private static String type(String path) {
        String end = path.substring(path.lastIndexOf('.') + 1);
        for (int i = 0; i < TYPES.length; i += 2) if (TYPES[i].equals(end)) return TYPES[i + 1];
        return null;
    }

    /** The page is one page: nothing leads elsewhere. */
    @Override
    @SuppressWarnings("deprecation")  // the newer one calls this
    public boolean shouldOverrideUrlLoading(WebView view, String url) {
        return true;
    }

    /** Of a page that loads itself anew; the first one has a new bridge. */
    @Override
    public void onPageStarted(WebView view, String url, Bitmap icon) {
        if (isStarted) activity.bridge().reset();
        isStarted = true;
    }

    /** API 26. Without this the app would end with the page's process. */
    public boolean onRenderProcessGone(WebView view, RenderProcessGoneDetail detail) {
        activity.showPage();
        return true;
    }
}
